//! Tokens that a registry is shown: got where it says, kept until they run out.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::sync::Mutex;

/// How long a token is good for that does not say so (distribution's "Token Authentication Specification").
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The longest that a token is kept.
const LONGEST_LIFE: Duration = Duration::from_secs(3_600);
/// Scopes that tokens are kept for at most.
const MOST: usize = 4_096;

/// What an answer of a token server holds.
#[derive(Deserialize)]
pub struct Issued {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// A token and when it is not to be used any more.
#[derive(Clone)]
struct Token {
    secret: String,
    until: Instant,
}

/// The tokens of one registry, by what they allow. Never shown.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, Token>>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(..)")
    }
}

impl Issued {
    /// The token itself, of a form that can stand in a header.
    pub fn secret(&self) -> Option<&str> {
        let token = self.token.as_deref().or(self.access_token.as_deref())?;
        let fits = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then_some(token)
    }
}

impl Tokens {
    /// The token for a scope, if it is still good for a while.
    pub async fn get(&self, scope: &str) -> Option<String> {
        let tokens = self.0.lock().await;
        tokens.get(scope).filter(|token| token.until > Instant::now()).map(|token| token.secret.clone())
    }

    /// Keeps a token. A fifth of its life is left unused: a request with it may take a while to arrive.
    pub async fn put(&self, scope: &str, issued: &Issued) {
        let Some(secret) = issued.secret() else { return };
        let life = issued.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(LONGEST_LIFE);
        let mut tokens = self.0.lock().await;
        if tokens.len() >= MOST {
            let now = Instant::now();
            tokens.retain(|_, token| token.until > now);
        }
        if tokens.len() < MOST {
            let token = Token { secret: secret.to_owned(), until: Instant::now() + life * 4 / 5 };
            tokens.insert(scope.to_owned(), token);
        }
    }

    /// Throws a token away that was refused.
    pub async fn drop_refused(&self, scope: &str) {
        self.0.lock().await.remove(scope);
    }
}
