//! What is left of a directory where the one that should follow it can't be used as a whole: nobody is let in by half of a
//! configuration, but whom it does not list any more is taken out.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Directory, Identity, Name, acs3::AccessKeys};
use crate::ram::{Policies, Principal};

/// What a configuration lists, whether it can be used or not.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// The principals, each with the names of the policies that it has by itself or by a group.
    pub principals: HashMap<Principal, HashSet<String>>,
    /// The digests of bearer tokens, and whose they are.
    pub tokens: HashMap<[u8; 32], Principal>,
    /// Who signs tokens and is believed.
    pub issuers: HashSet<String>,
    /// Claims of their tokens, by issuer, and whose they are.
    pub claims: Vec<(String, HashMap<String, String>, Principal)>,
    /// Names in certificates, and whose they are.
    pub certificates: HashMap<Name, Principal>,
    /// The ids of access keys, and whose they are.
    pub access_keys: HashMap<String, Principal>,
}

impl Listed {
    /// What is left of somebody: nothing where the principal is not listed or the credential is not its; without the policies that it
    /// has no more. One that denies stays: without it, more would be allowed.
    fn left(&self, identity: &Arc<Identity>, holder: Option<&Principal>) -> Option<Arc<Identity>> {
        let principal = holder.filter(|holder| **holder == identity.principal)?;
        let names = self.principals.get(principal)?;
        let stays = |policy: &crate::ram::Policy| names.contains(&*policy.name) || policy.document.denies();
        if identity.policies.0.iter().all(|attached| stays(&attached.policy)) {
            return Some(Arc::clone(identity));
        }
        let left = identity.policies.0.iter().filter(|attached| stays(&attached.policy)).cloned().collect();
        Some(Arc::new(Identity { policies: Policies(left), ..Identity::clone(identity) }))
    }
}

impl Directory {
    /// What is left of it.
    #[must_use]
    pub fn narrowed(&self, listed: &Listed) -> Self {
        let tokens = self.tokens.iter().filter_map(|token| {
            let holder = listed.left(&token.holder, listed.tokens.get(&token.digest))?;
            Some(super::Token { holder, ..token.clone() })
        });
        let issuers =
            self.issuers.iter().filter(|issuer| listed.issuers.contains(&issuer.name)).cloned().map(|mut issuer| {
                issuer.mappings.retain_mut(|mapping| {
                    let same = |claims: &HashMap<String, String>| {
                        claims.len() == mapping.claims.len()
                            && mapping.claims.iter().all(|(path, wanted)| claims.get(path) == Some(wanted))
                    };
                    let holder = listed.claims.iter().find_map(|(name, claims, holder)| {
                        let same = *name == issuer.name && *holder == mapping.identity.principal && same(claims);
                        same.then_some(holder)
                    });
                    let left = listed.left(&mapping.identity, holder);
                    left.map(|identity| mapping.identity = identity).is_some()
                });
                issuer
            });
        let certificates = self
            .certificates
            .iter()
            .filter_map(|(name, identity)| Some((name.clone(), listed.left(identity, listed.certificates.get(name))?)));
        let access_keys = self.access_keys.keys.iter().filter_map(|(id, key)| {
            let holder = listed.left(&key.holder, listed.access_keys.get(id))?;
            Some((id.clone(), super::acs3::AccessKey { holder, ..key.clone() }))
        });
        Self {
            tokens: tokens.collect(),
            issuers: issuers.collect(),
            certificates: certificates.collect(),
            access_keys: AccessKeys { keys: access_keys.collect(), hosts: self.access_keys.hosts.clone() },
        }
    }
}
