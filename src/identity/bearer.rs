//! Static bearer tokens (RFC 6750). Only their digests are stored.

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{AuthError, AuthMethod, Caller, Identity};
use crate::domain::Timestamp;

/// A token of a principal. A principal may have several, so that tokens can be rotated.
#[derive(Debug, Clone)]
pub struct Token {
    /// SHA-256 of the token.
    pub digest: [u8; 32],
    /// Time of expiry; `None` if the token does not expire.
    pub expires: Option<Timestamp>,
    /// The token's principal.
    pub holder: Arc<Identity>,
}

/// All tokens, by digest. The time of a look-up varies, but reveals only digests, which a caller can't choose.
#[derive(Debug, Clone, Default)]
pub struct Tokens(HashMap<[u8; 32], Token>);

impl FromIterator<Token> for Tokens {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        Self(tokens.into_iter().map(|token| (token.digest, token)).collect())
    }
}

impl Tokens {
    /// Iterates over all tokens.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.values()
    }

    /// Authenticates the holder of a token.
    ///
    /// # Errors
    ///
    /// Fails if the token is unknown or has expired.
    pub fn verify(&self, presented: &[u8], now: Timestamp) -> Result<Caller, AuthError> {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        let token = self.0.get(&presented).filter(|token| bool::from(token.digest.ct_eq(&presented)));
        let token = token.ok_or(AuthError::Unknown)?;
        match token.expires {
            Some(expires) if expires <= now => Err(AuthError::Invalid(format!("The token expired at {expires}"))),
            _ => Ok(Caller::new(&token.holder, AuthMethod::Token)),
        }
    }
}
