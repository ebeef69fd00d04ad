//! Who may call: principals by their bearer tokens, of which only digests are kept.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::ram::{Policies, Policy, Principal};

/// A principal and its policies.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who it is.
    pub principal: Principal,
    /// What it may do.
    pub policies: Policies,
}

/// Everybody who may call.
#[derive(Debug, Default)]
pub struct Identities(Vec<([u8; 32], Arc<Identity>)>);

impl Identities {
    /// Principals with the SHA-256 of their tokens and their policies.
    pub fn new(entries: impl IntoIterator<Item = (Principal, [u8; 32], Vec<Policy>)>) -> Self {
        let identity = |(principal, digest, policies): (Principal, [u8; 32], Vec<Policy>)| {
            let policies = Policies(policies.into_iter().map(Arc::new).collect());
            (digest, Arc::new(Identity { principal, policies }))
        };
        Self(entries.into_iter().map(identity).collect())
    }

    /// Whose token it is. Takes the same time whichever it is, and whether it is one at all.
    #[must_use]
    pub fn find(&self, token: &[u8]) -> Option<&Arc<Identity>> {
        let presented: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        for (digest, identity) in &self.0 {
            if bool::from(digest.ct_eq(&presented)) {
                found = Some(identity);
            }
        }
        found
    }
}
