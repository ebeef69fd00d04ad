//! Access tokens of a registry: requested from its token server and cached until they expire.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::{Url, form_urlencoded::Serializer};

use super::{credentials::Credentials, learnt_life::LearntLife};
use crate::{Error, Result, http_response::bounded};

/// Maximum size of a token server's response, in bytes.
const MAX_BYTES: u64 = 64 << 10;
/// Client id that is sent to the token server.
const CLIENT: &str = "appferry";

/// Lifetime of a token whose response states none (distribution's "Token Authentication Specification").
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longest time that a token is cached.
const LONGEST_LIFE: Duration = Duration::from_secs(3_600);
/// Maximum length of a token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// Maximum number of scopes with a cached token, and maximum size of all cached tokens and scopes in bytes.
const MOST: usize = 4_096;
const MOST_BYTES: usize = 4 << 20;

/// Response of a token server.
#[derive(Deserialize)]
pub struct Issued {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// Seconds until the token expires. Any other JSON type selects the default.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// A token and the time after which it is not used.
#[derive(Clone)]
struct Token {
    secret: String,
    since: Instant,
    until: Instant,
}

/// Cached tokens of one registry, by scope. The `Debug` output omits them.
#[derive(Default)]
pub struct Tokens {
    kept: Mutex<HashMap<String, Token>>,
    life: LearntLife,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// A request for a token. It may be redirected.
pub struct TokenRequest {
    pub method: Method,
    pub url: Url,
    /// Credentials in a header.
    authorization: Option<HeaderValue>,
    /// Credentials in a form.
    form: Option<String>,
}

impl TokenRequest {
    /// Returns the request for a token at `realm` (distribution's "Token Authentication Specification"; for an identity
    /// token, its `OAuth2` variant).
    pub fn new(mut realm: Url, service: Option<&str>, scope: &str, credentials: &Credentials) -> Result<Self> {
        if let Credentials::Identity(token) = credentials {
            let mut form = Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("client_id", CLIENT);
            form.append_pair("refresh_token", token).append_pair("scope", scope);
            form.extend_pairs(service.map(|service| ("service", service)));
            return Ok(Self { method: Method::POST, url: realm, authorization: None, form: Some(form.finish()) });
        }
        realm
            .query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .extend_pairs(scope.split(' ').map(|one| ("scope", one)));
        let authorization = match credentials {
            Credentials::Password { username, password } => Some(sensitive(basic(username, password))?),
            _ => None,
        };
        Ok(Self { method: Method::GET, url: realm, authorization, form: None })
    }

    /// Returns the same request for the target of a redirect. Credentials are never sent to another origin.
    pub fn redirected(self, what: &str, url: Url) -> Result<Self> {
        if url.origin() == self.url.origin() {
            return Ok(Self { url, ..self });
        }
        if self.form.is_some() {
            return Err(Error::malformed(
                what,
                "it is redirected to another server, which is not sent the identity token",
            ));
        }
        Ok(Self { url, authorization: None, ..self })
    }

    pub fn build(&self, http: &reqwest::Client) -> RequestBuilder {
        let mut request = http.request(self.method.clone(), self.url.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(form) = &self.form {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone());
        }
        request
    }
}

/// Returns the header value for a user name and a password (RFC 7617).
pub fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// Returns a header value that is omitted from `Debug` output.
pub fn sensitive(value: String) -> Result<HeaderValue> {
    let unfit = |_| Error::malformed("the region's credentials", "they can't stand in a header");
    let mut value = HeaderValue::try_from(value).map_err(unfit)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Issued {
    /// Reads a response. Errors do not quote it, because it may contain a secret.
    pub async fn read(what: &str, response: Response) -> Result<Self> {
        let content = bounded(what, response, MAX_BYTES).await?;
        serde_json::from_slice(&content).map_err(|_| Error::malformed(what, "it is no JSON of a token"))
    }

    /// Returns the token, if it is valid in a header.
    pub fn secret(&self) -> Option<&str> {
        let given = [&self.token, &self.access_token];
        // Some servers leave one of the two empty.
        let token = given.into_iter().flatten().find(|token| !token.is_empty())?;
        let fits = token.len() <= MAX_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then_some(token)
    }
}

impl Tokens {
    /// Returns the unexpired token for a scope.
    pub async fn get(&self, scope: &str) -> Option<String> {
        let tokens = self.kept.lock().await;
        tokens.get(scope).filter(|token| token.until > Instant::now()).map(|token| token.secret.clone())
    }

    /// Caches a token for four fifths of its lifetime, because a request with it may take a while to arrive.
    pub async fn put(&self, scope: &str, issued: &Issued) {
        let Some(secret) = issued.secret() else { return };
        let life = issued.expires_in.as_u64().map_or(DEFAULT_LIFE, Duration::from_secs).min(LONGEST_LIFE) * 4 / 5;
        let life = self.life.bounding(life);
        let mut tokens = self.kept.lock().await;
        let has_room = |tokens: &HashMap<String, Token>| {
            let held: usize = tokens.iter().map(|(scope, token)| scope.len() + token.secret.len()).sum();
            tokens.len() < MOST && held + scope.len() + secret.len() <= MOST_BYTES
        };
        if !has_room(&tokens) {
            let now = Instant::now();
            tokens.retain(|_, token| token.until > now);
        }
        if has_room(&tokens) {
            let since = Instant::now();
            let token = Token { secret: secret.to_owned(), since, until: since + life };
            tokens.insert(scope.to_owned(), token);
        }
    }

    /// Drops a token that the registry rejected. Shortens the lifetime of later tokens, because the stated lifetime is
    /// wrong.
    pub async fn drop_refused(&self, scope: &str) {
        if let Some(token) = self.kept.lock().await.remove(scope) {
            self.life.learn(token.since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Issued, Tokens};

    fn issued(length: usize) -> Issued {
        Issued { token: Some("t".repeat(length)), access_token: None, expires_in: 300.into() }
    }

    #[tokio::test]
    async fn the_tokens_of_a_registry_take_four_mebibytes_at_most() {
        assert!(issued(16_384).secret().is_some());
        assert!(issued(16_385).secret().is_none(), "a longer one is refused");
        let tokens = Tokens::default();
        for n in 0..1_000 {
            tokens.put(&format!("repository:{n}:pull"), &issued(16_384)).await;
        }
        let kept = tokens.kept.lock().await;
        let bytes: usize = kept.iter().map(|(scope, token)| scope.len() + token.secret.len()).sum();
        assert!((4 << 20) - 17_000 < bytes && bytes <= 4 << 20, "{bytes}");
    }
}
