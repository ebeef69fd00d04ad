//! Authenticates callers by the credentials of one configuration.

use std::{collections::HashMap, sync::Arc};

use acs3::{AccessKey, AccessKeys, Hosts, Nonce, SignedRequest};

use super::{AuthError, AuthMethod, Caller, CertificateName, CertificateNames, Identity, Issuer, Token, Tokens, jwt};
use crate::domain::Timestamp;

/// All credentials of a configuration, and the principals that they identify.
#[derive(Debug, Clone, Default)]
pub struct Authenticator {
    pub(super) tokens: Tokens,
    pub(super) issuers: Vec<Issuer>,
    pub(super) certificates: HashMap<CertificateName, Arc<Identity>>,
    pub(super) access_keys: AccessKeys<Arc<Identity>>,
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
    pub access_keys: Vec<AccessKey<Arc<Identity>>>,
    /// The hosts that requests may be signed for.
    pub hosts: Hosts,
}

impl From<Credentials> for Authenticator {
    fn from(credentials: Credentials) -> Self {
        let Credentials { tokens, issuers, certificates, access_keys, hosts } = credentials;
        let access_keys = AccessKeys::new(access_keys, hosts);
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
    /// Fails if none of the certificate's names is configured.
    pub fn certificate(&self, names: &CertificateNames) -> Result<Caller, AuthError> {
        let identity = names.names().iter().find_map(|name| self.certificates.get(name));
        identity.map(|identity| Caller::new(identity, AuthMethod::Certificate)).ok_or(AuthError::Unknown)
    }

    /// Returns the holder of an access key. Verifies no signature.
    #[must_use]
    pub fn access_key(&self, id: &str) -> Option<Caller> {
        self.access_keys.get(id).map(|key| Caller::new(&key.holder, AuthMethod::AccessKey))
    }

    /// Whether access keys are configured.
    #[must_use]
    pub fn has_access_keys(&self) -> bool {
        !self.access_keys.is_empty()
    }

    /// Authenticates the signer of a request whose body is `content`. The caller of this function has to check the
    /// returned nonce, because the request may be a replay.
    ///
    /// # Errors
    ///
    /// Fails if the signature, the host or the time does not match, or the access key is unknown.
    pub fn signed(
        &self,
        request: &SignedRequest<'_>,
        content: &[u8],
        now: Timestamp,
    ) -> Result<(Caller, Nonce), AuthError> {
        let verified = self.access_keys.verify(request, content, now)?;
        Ok((Caller::new(verified.holder, AuthMethod::AccessKey), verified.nonce))
    }
}
