//! TLS certificates: the name in one that says whose it is. That it is genuine has been verified with the connection.

use std::{fmt, str::FromStr};

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use crate::domain::ForeignText;

/// The most names that a certificate may have.
const MAX_NAMES: usize = 64;
/// The longest SPIFFE ID and the longest trust domain, in bytes (SPIFFE-ID, sections 2.1 and 2.3).
const MAX_SPIFFE_ID: usize = 2_048;
const MAX_DOMAIN: usize = 255;

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
            let is_domain =
                plain(domain) && domain.len() <= MAX_DOMAIN && !domain.contains(|c: char| c.is_ascii_uppercase());
            let is_path = path.split('/').all(|part| plain(part) && part != "." && part != "..");
            let whole = is_domain && is_path && text.len() <= MAX_SPIFFE_ID;
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

/// Whether a URI has the scheme of SPIFFE IDs, in whatever case (RFC 3986, section 3.1).
fn is_spiffe(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe"))
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
    /// It has a SPIFFE ID and another URI, which none that is genuine has.
    #[error("the certificate has more than one URI, and one of them is a SPIFFE ID")]
    Ambiguous,
    /// It has a URI that begins as a SPIFFE ID does and is none.
    #[error("the certificate's SPIFFE ID is not one: {0}")]
    Malformed(NameError),
    /// It has more names than are looked at.
    #[error("the certificate has {0} names, the most is {MAX_NAMES}")]
    TooMany(usize),
}

impl CertificateNames {
    /// Reads the names of a certificate in DER form: its SPIFFE ID if it has one, else its DNS names. What is in its subject does not
    /// count (RFC 6125, section 6.4.4). A SPIFFE ID is the only URI (SPIFFE X.509-SVID, section 2), and what looks like one must be one:
    /// what is not understood is not passed over.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Unreadable)?;
        let alternative = certificate.subject_alternative_name().map_err(|_| CertificateError::Unreadable)?;
        let names = alternative.map(|extension| &extension.value.general_names[..]).unwrap_or_default();
        if names.len() > MAX_NAMES {
            return Err(CertificateError::TooMany(names.len()));
        }
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        for name in names {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::DNSName(name) => dns.extend(name.parse::<Name>().ok()),
                _ => {}
            }
        }
        if !uris.iter().any(|uri| is_spiffe(uri)) {
            return Ok(Self(dns));
        }
        match uris[..] {
            [id] => Ok(Self(vec![id.parse().map_err(CertificateError::Malformed)?])),
            _ => Err(CertificateError::Ambiguous),
        }
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> &[Name] {
        &self.0
    }
}
