//! Authenticates callers by the credentials of one configuration.

use std::{collections::HashMap, sync::Arc};

use super::{
    AuthError, AuthMethod, Caller, CertificateName, CertificateNames, Identity, Issuer, Token, Tokens,
    acs3::{AccessKey, AccessKeys, Hosts},
    jwt,
};
use crate::domain::Timestamp;

/// All credentials of a configuration, and the principals that they prove.
#[derive(Debug, Clone, Default)]
pub struct Authenticator {
    pub(super) tokens: Tokens,
    pub(super) issuers: Vec<Issuer>,
    pub(super) certificates: HashMap<CertificateName, Arc<Identity>>,
    pub(super) access_keys: AccessKeys,
}

/// The credentials that an [`Authenticator`] is built from.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Static bearer tokens.
    pub tokens: Vec<Token>,
    /// Trusted issuers of JSON Web Tokens.
    pub issuers: Vec<Issuer>,
    /// Principals by the names in their client certificates.
    pub certificates: HashMap<CertificateName, Arc<Identity>>,
    /// Keys that requests are signed with.
    pub access_keys: Vec<AccessKey>,
    /// The hosts that requests may be signed for.
    pub hosts: Hosts,
}

impl From<Credentials> for Authenticator {
    fn from(credentials: Credentials) -> Self {
        let Credentials { tokens, issuers, certificates, access_keys, hosts } = credentials;
        let keys = access_keys.into_iter().map(|key| (key.id.clone(), key)).collect();
        let access_keys = AccessKeys { keys, hosts };
        Self { tokens: tokens.into_iter().collect(), issuers, certificates, access_keys }
    }
}

impl Authenticator {
    /// Authenticates the holder of a bearer token: a static one, or a JSON Web Token of a trusted issuer.
    ///
    /// # Errors
    ///
    /// Fails if the token is unknown, invalid or expired.
    pub fn bearer(&self, token: &str, now: Timestamp) -> Result<Caller, AuthError> {
        if !self.issuers.is_empty() && jwt::is_jwt(token) {
            return jwt::verify(&self.issuers, token, now);
        }
        self.tokens.verify(token.as_bytes(), now)
    }

    /// Authenticates the holder of a client certificate.
    ///
    /// # Errors
    ///
    /// Fails if none of its names is configured.
    pub fn certificate(&self, names: &CertificateNames) -> Result<Caller, AuthError> {
        let identity = names.names().iter().find_map(|name| self.certificates.get(name));
        identity.map(|identity| Caller::new(identity, AuthMethod::Certificate)).ok_or(AuthError::Unknown)
    }

    /// Returns the holder of an access key, without a signature to verify.
    #[must_use]
    pub fn access_key(&self, id: &str) -> Option<Caller> {
        self.access_keys.keys.get(id).map(|key| Caller::new(&key.holder, AuthMethod::AccessKey))
    }

    /// Returns the access keys, which verify signatures.
    #[must_use]
    pub fn access_keys(&self) -> &AccessKeys {
        &self.access_keys
    }
}
