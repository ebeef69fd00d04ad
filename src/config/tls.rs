//! The section `[tls]`: the certificates of the listeners.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, invalid};
use crate::server::TlsSettings;

/// `[tls]`: the server's certificate, and the authorities of client certificates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The file with the server's certificate and its chain, in PEM form.
    pub certificate_file: PathBuf,
    /// The file with the private key of this certificate, in PEM form.
    pub key_file: PathBuf,
    /// The file with the trusted authorities of client certificates, in PEM form.
    pub client_ca_file: Option<PathBuf>,
    /// Whether every client must present a certificate. Otherwise a client without one needs another credential.
    #[serde(default)]
    pub require_client_certificate: bool,
}

impl Tls {
    /// Rejects invalid values.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.require_client_certificate && self.client_ca_file.is_none() {
            return Err(invalid("tls.require_client_certificate", "needs client_ca_file, to verify the certificates"));
        }
        Ok(())
    }

    /// Returns the settings of the listener.
    #[must_use]
    pub fn settings(&self) -> TlsSettings {
        TlsSettings {
            certificate_file: self.certificate_file.clone(),
            key_file: self.key_file.clone(),
            client_ca_file: self.client_ca_file.clone(),
            require_client_certificate: self.require_client_certificate,
        }
    }
}
