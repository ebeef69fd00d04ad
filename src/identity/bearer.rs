//! Bearer tokens (RFC 6750) that were given to principals, of which only digests are kept.

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Caller, Identity, Method, Unproven};
use crate::domain::Timestamp;

/// A token of a principal, which may have several: an old one and its successor.
#[derive(Debug, Clone)]
pub struct Token {
    /// The SHA-256 of it.
    pub digest: [u8; 32],
    /// When it ends; never if nothing is said.
    pub expires: Option<Timestamp>,
    /// Whose it is.
    pub holder: Arc<Identity>,
}

/// All tokens, by the digests of them. Where in the table one is looked for says something about its digest, and from that nothing
/// can be learned about the token: whoever asks can't choose digests.
#[derive(Debug, Clone, Default)]
pub struct Tokens(HashMap<[u8; 32], Token>);

impl FromIterator<Token> for Tokens {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        Self(tokens.into_iter().map(|token| (token.digest, token)).collect())
    }
}

impl Tokens {
    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.values()
    }

    /// Whose token it is.
    pub fn verify(&self, presented: &[u8], now: Timestamp) -> Result<Caller, Unproven> {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        let found = self.0.get(&presented).filter(|token| bool::from(token.digest.ct_eq(&presented)));
        let token = found.ok_or(Unproven::Unknown)?;
        match token.expires {
            Some(expires) if expires <= now => Err(Unproven::Invalid(format!("The token has expired at {expires}"))),
            _ => Ok(Caller::of(&token.holder, Method::Token)),
        }
    }
}
