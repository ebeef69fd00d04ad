//! Revocation without a valid configuration. Credentials and policies that an invalid configuration no longer lists are
//! removed from the active configuration. New credentials and policies are not added.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use acs3::{AccessKey, AccessKeys};

use super::{Authenticator, CertificateName, Identity};
use crate::ram::{Policies, Principal};

/// The principals and credentials that a configuration lists, even if the configuration is invalid.
#[derive(Debug, Clone, Default)]
pub struct ListedCredentials {
    /// Principals, each with the names of its own policies and of its groups' policies.
    pub principals: HashMap<Principal, HashSet<String>>,
    /// Principals by the SHA-256 of their bearer tokens.
    pub tokens: HashMap<[u8; 32], Principal>,
    /// Names of the trusted issuers.
    pub issuers: HashSet<String>,
    /// Issuers, required claims, and the principals that they are mapped to.
    pub claims: Vec<(String, HashMap<String, String>, Principal)>,
    /// Principals by the names in their client certificates.
    pub certificates: HashMap<CertificateName, Principal>,
    /// Principals by the ids of their access keys.
    pub access_keys: HashMap<String, Principal>,
}

impl ListedCredentials {
    /// Returns an identity without the policies that are no longer listed; `None` if the principal is not listed, or
    /// the credential is not listed for it. Policies with a Deny are kept: removing them would permit more.
    fn retain(&self, identity: &Arc<Identity>, holder: Option<&Principal>) -> Option<Arc<Identity>> {
        let principal = holder.filter(|holder| **holder == identity.principal)?;
        let names = self.principals.get(principal)?;
        let is_kept = |policy: &crate::ram::Policy| names.contains(&*policy.name) || policy.document.denies();
        if identity.policies.0.iter().all(|attached| is_kept(&attached.policy)) {
            return Some(Arc::clone(identity));
        }
        let kept = identity.policies.0.iter().filter(|attached| is_kept(&attached.policy)).cloned().collect();
        Some(Arc::new(Identity { policies: Policies(kept), ..Identity::clone(identity) }))
    }
}

impl Authenticator {
    /// Returns the authenticator without credentials and policies that are no longer listed.
    #[must_use]
    pub fn retain_listed(&self, listed: &ListedCredentials) -> Self {
        let tokens = self.tokens.iter().filter_map(|token| {
            let holder = listed.retain(&token.holder, listed.tokens.get(&token.digest))?;
            Some(super::Token { holder, ..token.clone() })
        });
        let issuers =
            self.issuers.iter().filter(|issuer| listed.issuers.contains(&issuer.name)).cloned().map(|mut issuer| {
                issuer.mappings.retain_mut(|mapping| {
                    let has_same_claims = |claims: &HashMap<String, String>| {
                        claims.len() == mapping.claims.len()
                            && mapping.claims.iter().all(|(path, value)| claims.get(path) == Some(value))
                    };
                    let holder = listed.claims.iter().find_map(|(name, claims, holder)| {
                        let is_listed =
                            *name == issuer.name && *holder == mapping.identity.principal && has_same_claims(claims);
                        is_listed.then_some(holder)
                    });
                    let identity = listed.retain(&mapping.identity, holder);
                    identity.map(|identity| mapping.identity = identity).is_some()
                });
                issuer
            });
        let certificates = self.certificates.iter().filter_map(|(name, identity)| {
            Some((name.clone(), listed.retain(identity, listed.certificates.get(name))?))
        });
        let access_keys = self.access_keys.iter().filter_map(|key| {
            let holder = listed.retain(&key.holder, listed.access_keys.get(&key.id))?;
            Some(AccessKey { holder, ..key.clone() })
        });
        Self {
            tokens: tokens.collect(),
            issuers: issuers.collect(),
            certificates: certificates.collect(),
            access_keys: AccessKeys::new(access_keys, self.access_keys.hosts().clone()),
        }
    }
}
