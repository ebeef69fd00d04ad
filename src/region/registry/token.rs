//! Tokens that a registry is shown: got where it says, kept until they run out.

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
use crate::region::{Error, Result, answer::bounded};

/// The largest answer of a token server, in bytes.
const MAX_BYTES: u64 = 64 << 10;
/// What the service calls itself there.
const CLIENT: &str = "appferry";

/// How long a token is good for that does not say so (distribution's "Token Authentication Specification").
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The longest that a token is kept.
const LONGEST_LIFE: Duration = Duration::from_secs(3_600);
/// The longest token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// Scopes that tokens are kept for at most, and the bytes of all those tokens.
const MOST: usize = 4_096;
const MOST_BYTES: usize = 4 << 20;

/// What an answer of a token server holds.
#[derive(Deserialize)]
pub struct Issued {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// A number of seconds; what some write in another form is left to the default.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// A token and when it is not to be used any more.
#[derive(Clone)]
struct Token {
    secret: String,
    since: Instant,
    until: Instant,
}

/// The tokens of one registry, by what they allow. Never shown.
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

/// A request for a token, which may be redirected.
pub struct TokenRequest {
    /// The method.
    pub method: Method,
    /// Where it is sent.
    pub url: Url,
    /// What shows who asks, in a header.
    authorization: Option<HeaderValue>,
    /// The same in a form.
    form: Option<String>,
}

impl TokenRequest {
    /// The request for a token at `realm` (distribution's "Token Authentication Specification"; with an identity token, its `OAuth2`
    /// form).
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

    /// The same request to where the answer points. Nothing secret goes to another server.
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

    /// The request as it is sent.
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

/// A name and a password as a header has them (RFC 7617).
pub fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// A header that is not shown.
pub fn sensitive(value: String) -> Result<HeaderValue> {
    let unfit = |_| Error::malformed("the region's credentials", "they can't stand in a header");
    let mut value = HeaderValue::try_from(value).map_err(unfit)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Issued {
    /// Reads an answer. What it says is not repeated if it is none: it may hold a secret.
    pub async fn read(what: &str, response: Response) -> Result<Self> {
        let content = bounded(what, response, MAX_BYTES).await?;
        serde_json::from_slice(&content).map_err(|_| Error::malformed(what, "it is no JSON of a token"))
    }

    /// The token itself, of a form that can stand in a header.
    pub fn secret(&self) -> Option<&str> {
        let given = [&self.token, &self.access_token];
        // Some leave one of the two empty.
        let token = given.into_iter().flatten().find(|token| !token.is_empty())?;
        let fits = token.len() <= MAX_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then_some(token)
    }
}

impl Tokens {
    /// The token for a scope, if it is still good for a while.
    pub async fn get(&self, scope: &str) -> Option<String> {
        let tokens = self.kept.lock().await;
        tokens.get(scope).filter(|token| token.until > Instant::now()).map(|token| token.secret.clone())
    }

    /// Keeps a token. A fifth of its life is left unused: a request with it may take a while to arrive.
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

    /// Throws a token away that was refused. Others will not be kept as long: what the registry says of their life is not so.
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
