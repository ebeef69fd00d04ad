//! Names in client certificates. The certificates themselves were verified in the TLS handshake.

use std::{fmt, str::FromStr};

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use crate::domain::ForeignText;

/// Maximum number of names of a certificate.
const MAX_NAMES: usize = 64;
/// Longest SPIFFE ID and longest trust domain, in bytes (SPIFFE-ID, sections 2.1 and 2.3).
const MAX_SPIFFE_ID: usize = 2_048;
const MAX_DOMAIN: usize = 255;

/// A name of a certificate's holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CertificateName {
    /// A SPIFFE ID: the certificate's only URI (SPIFFE X.509-SVID, section 2).
    Spiffe(String),
    /// A DNS name, in lower case.
    Dns(String),
}

/// A text that is not a certificate name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a SPIFFE ID (spiffe://TRUST-DOMAIN/PATH) nor a DNS name")]
pub struct CertificateNameError(ForeignText);

impl FromStr for CertificateName {
    type Err = CertificateNameError;

    fn from_str(text: &str) -> Result<Self, CertificateNameError> {
        let invalid = || CertificateNameError(ForeignText::value(text));
        if let Some(id) = text.strip_prefix("spiffe://") {
            let (domain, path) = id.split_once('/').ok_or_else(invalid)?;
            let is_plain =
                |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            let is_domain =
                is_plain(domain) && domain.len() <= MAX_DOMAIN && !domain.contains(|c: char| c.is_ascii_uppercase());
            let is_path = path.split('/').all(|part| is_plain(part) && part != "." && part != "..");
            let is_valid = is_domain && is_path && text.len() <= MAX_SPIFFE_ID;
            return if is_valid { Ok(Self::Spiffe(text.to_owned())) } else { Err(invalid()) };
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let is_dns = text.contains('.') && text.len() <= 253 && text.split('.').all(is_label);
        if is_dns { Ok(Self::Dns(text.to_ascii_lowercase())) } else { Err(invalid()) }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(name) | Self::Dns(name) => f.write_str(name),
        }
    }
}

/// Whether a URI has the scheme of SPIFFE IDs; case is ignored (RFC 3986, section 3.1).
fn is_spiffe(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe"))
}

/// The names in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateNames(Vec<CertificateName>);

/// Why a certificate has no usable names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The certificate or its subject alternative names can't be parsed.
    #[error("the certificate can't be parsed")]
    Unreadable,
    /// The certificate has a SPIFFE ID and another URI, which the standard forbids.
    #[error("the certificate has more than one URI, and one of them is a SPIFFE ID")]
    Ambiguous,
    /// The certificate has a malformed SPIFFE ID.
    #[error("the certificate has a malformed SPIFFE ID: {0}")]
    Malformed(CertificateNameError),
    /// The certificate has too many names.
    #[error("the certificate has {0} names; the maximum is {MAX_NAMES}")]
    TooMany(usize),
}

impl CertificateNames {
    /// Reads the names of a certificate in DER form: its SPIFFE ID if it has one, else its DNS names. The subject is
    /// ignored (RFC 6125, section 6.4.4).
    ///
    /// # Errors
    ///
    /// Fails if the certificate can't be parsed, has too many names, or has a SPIFFE ID that is malformed or not its
    /// only URI (SPIFFE X.509-SVID, section 2).
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
                GeneralName::DNSName(name) => dns.extend(name.parse::<CertificateName>().ok()),
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

    /// Returns the SPIFFE ID, or the DNS names.
    #[must_use]
    pub fn names(&self) -> &[CertificateName] {
        &self.0
    }
}
