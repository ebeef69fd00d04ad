//! Everybody who may call, and everything that proves who they are.

use std::{collections::HashMap, sync::Arc};

use super::{
    Caller, CertificateNames, Identity, Issuer, Method, Name, Token, Tokens, Unproven,
    acs3::{AccessKey, AccessKeys, Hosts},
    jwt,
};
use crate::domain::Timestamp;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    pub(super) tokens: Tokens,
    pub(super) issuers: Vec<Issuer>,
    pub(super) certificates: HashMap<Name, Arc<Identity>>,
    pub(super) access_keys: AccessKeys,
}

/// What a directory is made of.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    /// Bearer tokens.
    pub tokens: Vec<Token>,
    /// Who signs tokens and is believed.
    pub issuers: Vec<Issuer>,
    /// Names in certificates, and whose they are.
    pub certificates: HashMap<Name, Arc<Identity>>,
    /// Access keys.
    pub access_keys: Vec<AccessKey>,
    /// The hosts that requests may be signed for.
    pub hosts: Hosts,
}

impl From<Builder> for Directory {
    fn from(parts: Builder) -> Self {
        let Builder { tokens, issuers, certificates, access_keys, hosts } = parts;
        let keys = access_keys.into_iter().map(|key| (key.id.clone(), key)).collect();
        let access_keys = AccessKeys { keys, hosts };
        Self { tokens: tokens.into_iter().collect(), issuers, certificates, access_keys }
    }
}

impl Directory {
    /// Whose bearer token it is: one that was given to a principal, or one that an issuer has signed.
    pub fn bearer(&self, token: &str, now: Timestamp) -> Result<Caller, Unproven> {
        if !self.issuers.is_empty() && jwt::is_one(token) {
            return jwt::verify(&self.issuers, token, now);
        }
        self.tokens.verify(token.as_bytes(), now)
    }

    /// Whose certificate it is.
    pub fn certificate(&self, names: &CertificateNames) -> Result<Caller, Unproven> {
        let found = names.names().iter().find_map(|name| self.certificates.get(name));
        found.map(|identity| Caller::of(identity, Method::Certificate)).ok_or(Unproven::Unknown)
    }

    /// Whose access key it is; what it has signed is another question.
    #[must_use]
    pub fn access_key(&self, id: &str) -> Option<Caller> {
        self.access_keys.keys.get(id).map(|key| Caller::of(&key.holder, Method::AccessKey))
    }

    /// The access keys that requests are signed with.
    #[must_use]
    pub fn access_keys(&self) -> &AccessKeys {
        &self.access_keys
    }
}
