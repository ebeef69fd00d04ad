//! `[tls]`.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, value};
use crate::server::TlsSettings;

/// `[tls]`: our certificate, and whose we take from callers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Our certificate and those that lead to its issuer, in PEM form.
    pub certificate_file: PathBuf,
    /// Its private key, in PEM form.
    pub key_file: PathBuf,
    /// The issuers of client certificates that are taken, in PEM form.
    pub client_ca_file: Option<PathBuf>,
    /// Whether every client must show a certificate; else one that has none shows another credential.
    #[serde(default)]
    pub require_client_certificate: bool,
}

impl Tls {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.require_client_certificate && self.client_ca_file.is_none() {
            return Err(value("tls.require_client_certificate", "there is no client_ca_file to verify one with"));
        }
        Ok(())
    }

    /// What the listener needs.
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
