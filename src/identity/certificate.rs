//! TLS certificates: the name in one that says whose it is. That it is genuine has been verified with the connection.

use std::{fmt, str::FromStr};

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use crate::domain::ForeignText;

/// The most names of a certificate that are looked at.
const MAX_NAMES: usize = 64;

/// A name by which a certificate says whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// A SPIFFE ID, in the certificate's one URI (SPIFFE X.509-SVID, section 2).
    Spiffe(String),
    /// A DNS name, in lower case.
    Dns(String),
}

/// Why a text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a SPIFFE ID (spiffe://TRUST-DOMAIN/PATH) nor a DNS name")]
pub struct NameError(ForeignText);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused = || NameError(ForeignText::value(text));
        if let Some(id) = text.strip_prefix("spiffe://") {
            let (domain, path) = id.split_once('/').ok_or_else(refused)?;
            let plain =
                |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            let whole = plain(domain) && path.split('/').all(|part| plain(part) && part != "." && part != "..");
            return if whole { Ok(Self::Spiffe(text.to_owned())) } else { Err(refused()) };
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let dns = text.contains('.') && text.len() <= 253 && text.split('.').all(label);
        if dns { Ok(Self::Dns(text.to_ascii_lowercase())) } else { Err(refused()) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(name) | Self::Dns(name) => f.write_str(name),
        }
    }
}

/// The names in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateNames(Vec<Name>);

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It can't be read.
    #[error("the certificate can't be read")]
    Unreadable,
    /// It has more than one SPIFFE ID, which none that is genuine has.
    #[error("the certificate has more than one SPIFFE ID")]
    Ambiguous,
}

impl CertificateNames {
    /// Reads the names of a certificate in DER form: its SPIFFE ID if it has one, else its DNS names. What is in its subject does not
    /// count (RFC 6125, section 6.4.4).
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Unreadable)?;
        let alternative = certificate.subject_alternative_name().map_err(|_| CertificateError::Unreadable)?;
        let names = alternative.iter().flat_map(|extension| &extension.value.general_names).take(MAX_NAMES);
        let (mut spiffe, mut dns) = (Vec::new(), Vec::new());
        for name in names {
            match name {
                GeneralName::URI(uri) if uri.starts_with("spiffe://") => spiffe.extend(uri.parse::<Name>().ok()),
                GeneralName::DNSName(name) => dns.extend(name.parse::<Name>().ok()),
                _ => {}
            }
        }
        match spiffe.len() {
            0 => Ok(Self(dns)),
            1 => Ok(Self(spiffe)),
            _ => Err(CertificateError::Ambiguous),
        }
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> &[Name] {
        &self.0
    }
}
