//! HTTP client of one registry: adds authorization, limits time and size, and connects to allowed hosts only.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use domain::ForeignText;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION},
};
use reqwest::{Body, Response};
use tokio::time::timeout;
use url::Url;

use super::{
    challenge::Challenge,
    credentials::{CredentialProvider, Credentials},
    token::{self, Issued, TokenRequest, Tokens, basic},
};
use crate::{
    Error, Result,
    egress::{Egress, NotAdmitted},
    http_response::{is_transient, refusal, retry_after, transport},
    location::{RegistryLocation, authority},
    request_span, server_trust,
};

/// Timeout until the head of a response.
const ANSWER: Duration = Duration::from_secs(60);
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(60);
/// Maximum number of retries of a repeatable request after a transient error, and the delay before the first retry.
const REPEATS: u32 = 3;
const REPEAT_WAIT: Duration = Duration::from_millis(200);
/// Maximum number of retries after a response with the status 403.
const DOUBTS: u32 = 2;
/// Longest `Retry-After` that the client waits for. A longer one ends the attempt.
const SHORT_WAIT: Duration = Duration::from_secs(5);
/// Maximum number of redirects of one request.
pub const REDIRECTS: usize = 4;

/// Maximum length of a `Location`, in bytes: RFC 9110, section 4.1, recommends support for at least this length.
const MAX_LOCATION: usize = 8_000;

/// HTTP client of one registry.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    egress: Egress,
    location: RegistryLocation,
    credentials: CredentialProvider,
    also_hosts: Vec<String>,
    tokens: Tokens,
    /// The last challenge for which the registry has accepted the authorization.
    challenge: ArcSwapOption<Challenge>,
}

/// The access that a request needs.
#[derive(Debug, Clone)]
pub struct Scope(String);

impl Scope {
    /// Read access to a repository.
    pub fn pull(repository: &str) -> Self {
        Self(format!("repository:{repository}:pull"))
    }

    /// Read and write access to a repository.
    pub fn push(repository: &str) -> Self {
        Self(format!("repository:{repository}:pull,push"))
    }

    /// Write access to a repository, and read access to the source of a mount.
    pub fn mount(repository: &str, from: &str) -> Self {
        Self(format!("repository:{repository}:pull,push repository:{from}:pull"))
    }
}

/// A request that can be repeated.
#[derive(Debug)]
pub struct Ask {
    pub method: Method,
    /// The complete URL.
    pub url: Url,
    /// The access that the request needs.
    pub scope: Scope,
    /// Additional headers.
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Result of sending a request: a response, or a 401 with its challenge.
enum Sent {
    Answer(Response),
    Challenged(Option<Challenge>),
}

impl Client {
    /// Creates a client. It trusts `certificates`, in PEM form, in addition to those of the system.
    pub fn new(
        location: RegistryLocation,
        credentials: impl Into<CredentialProvider>,
        also_hosts: Vec<String>,
        certificates: Option<&[u8]>,
        egress: impl Into<Egress>,
    ) -> Result<Self> {
        let egress = egress.into();
        let unusable = |error: reqwest::Error| transport("the HTTP client", &error);
        let mut builder = egress
            .client()
            .map_err(unusable)?
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            // Digests apply to the bytes as they are stored, so the transfer must not compress them.
            .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
            .http1_only();
        if let Some(pem) = certificates {
            let trust = server_trust::trusting(pem).map_err(|error| Error::malformed("the region's ca_file", error))?;
            builder = builder.tls_backend_preconfigured(trust);
        }
        let http = builder.build().map_err(unusable)?;
        egress
            .check(&location.base)
            .map_err(|source| Error::Forbidden { what: location.authority().into(), source })?;
        Ok(Self {
            http,
            egress,
            location,
            credentials: credentials.into(),
            also_hosts,
            tokens: Tokens::default(),
            challenge: ArcSwapOption::empty(),
        })
    }

    /// Returns the location of the registry.
    pub fn location(&self) -> &RegistryLocation {
        &self.location
    }

    /// Returns a URL of the registry's API.
    pub fn url(&self, path: &str) -> Result<Url> {
        self.location.base.join(&format!("/v2/{path}")).map_err(|error| Error::malformed(path, error))
    }

    /// Sends a request, follows allowed redirects, and retries transient errors. Returns any other response, whatever
    /// its status.
    pub async fn ask(&self, ask: Ask) -> Result<Response> {
        let mut repeats = 0;
        loop {
            let answer = self.ask_once(&ask).await;
            let (wait, most) = match &answer {
                Ok(response) if is_transient(response.status()) => (retry_after(response.headers()), REPEATS),
                // Some registries signal a rate limit by this status, and some check permissions at a service that
                // fails for a moment.
                Ok(response) if response.status() == StatusCode::FORBIDDEN => (retry_after(response.headers()), DOUBTS),
                Err(error @ (Error::Transport { .. } | Error::Stalled(_))) => (error.retry_after(), REPEATS),
                _ => return answer,
            };
            let wait = wait.unwrap_or(REPEAT_WAIT * 4_u32.pow(repeats));
            if repeats >= most || wait > SHORT_WAIT {
                return match answer {
                    Ok(response) if response.status() == StatusCode::FORBIDDEN => Ok(response),
                    Ok(response) => Err(refusal(&what(&ask.method, &ask.url), response).await),
                    Err(error) => Err(error),
                };
            }
            repeats += 1;
            tracing::debug!(what = what(&ask.method, &ask.url), ?wait, "a request failed; retrying");
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a request once and follows allowed redirects. Returns the response, whatever its status.
    pub async fn ask_once(&self, ask: &Ask) -> Result<Response> {
        self.ask_once_within(ask, ANSWER).await
    }

    /// Does the same with another timeout until the head of the response.
    pub async fn ask_once_within(&self, ask: &Ask, answer: Duration) -> Result<Response> {
        let mut url = ask.url.clone();
        for _ in 0..=REDIRECTS {
            let response = self.authorized(ask, &url, answer).await?;
            if !leads_on(&ask.method, response.status()) {
                return Ok(response);
            }
            url = self.target(&what(&ask.method, &url), &url, response.headers())?;
        }
        Err(Error::malformed(what(&ask.method, &ask.url), "it is redirected too often"))
    }

    /// Sends a request, and once more if the registry responds with a new challenge. Remembers a challenge only after
    /// the registry has accepted the authorization, so that a wrong challenge does not break later requests.
    async fn authorized(&self, ask: &Ask, url: &Url, answer: Duration) -> Result<Response> {
        let mut challenge = self.known_challenge(url);
        let (mut fresh, mut renewed) = (false, false);
        loop {
            let mut headers = ask.headers.clone();
            let shown = match self.authorize(&mut headers, challenge.as_deref(), &ask.scope, fresh).await {
                Err(error) if fresh => return Err(error),
                // The remembered challenge can't be answered. The request is sent without authorization to get a new
                // one.
                Err(_) => {
                    challenge = self.forget_challenge();
                    None
                }
                Ok(shown) => shown,
            };
            let body = if ask.body.is_empty() { None } else { Some(Body::from(ask.body.clone())) };
            match self.send(ask.method.clone(), url, headers, body, answer).await? {
                Sent::Answer(response) => {
                    if let Some(challenge) = challenge.filter(|_| fresh) {
                        self.remember_challenge(challenge);
                    }
                    return Ok(response);
                }
                Sent::Challenged(Some(asked)) if !fresh && self.is_own(url) && self.can_answer(&asked) => {
                    challenge = Some(Arc::new(asked));
                    fresh = true;
                }
                Sent::Challenged(_) => {
                    let other = match &shown {
                        Some(shown) if !renewed => self.credentials.renew(shown).await?,
                        _ => false,
                    };
                    if !other {
                        return Err(self.unauthorized(&what(&ask.method, url)));
                    }
                    renewed = true;
                }
            }
        }
    }

    fn can_answer(&self, challenge: &Challenge) -> bool {
        !matches!(challenge, Challenge::Basic) || !self.credentials.is_anonymous()
    }

    /// Sends a request with a streamed body, once. Earlier requests have renewed the authorization shortly before. If
    /// the registry rejects it, the authorization has expired, and the error requests a retry.
    pub async fn stream(
        &self,
        method: Method,
        url: &Url,
        scope: &Scope,
        mut headers: HeaderMap,
        body: Body,
        answer: Duration,
    ) -> Result<Response> {
        let challenge = self.known_challenge(url);
        let shown = match self.authorize(&mut headers, challenge.as_deref(), scope, false).await {
            Ok(shown) => shown,
            Err(error) => {
                self.forget_challenge();
                return Err(error);
            }
        };
        let what = what(&method, url);
        match self.send(method, url, headers, Some(body), answer).await? {
            Sent::Answer(response) => Ok(response),
            Sent::Challenged(_) => {
                self.tokens.drop_refused(&scope.0).await;
                if let Some(shown) = &shown {
                    self.credentials.renew(shown).await?;
                }
                Err(Error::Transport { what: what.into(), problem: "the authorization ran out".into() })
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<Body>,
        answer: Duration,
    ) -> Result<Sent> {
        let what = what(&method, url);
        self.admit(&what, url).await?;
        let span = request_span::begin(&method, url);
        let mut request = self.http.request(method.clone(), url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = timeout(answer, request.send()).await;
        let outcome = match &response {
            Ok(Ok(response)) => Ok(response.status()),
            Ok(Err(_)) => Err("transport"),
            Err(_) => Err("timeout"),
        };
        request_span::end(&span, &method, outcome);
        let response = response.map_err(|_| Error::Stalled("an answer of the registry"))?;
        let response = response.map_err(|error| self.unsent(what, url, &error))?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Ok(Sent::Challenged(Challenge::of(response.headers())));
        }
        Ok(Sent::Answer(response))
    }

    /// Adds the authorization that a challenge requires. Returns the credentials if the header contains them directly.
    async fn authorize(
        &self,
        headers: &mut HeaderMap,
        challenge: Option<&Challenge>,
        scope: &Scope,
        fresh: bool,
    ) -> Result<Option<Credentials>> {
        let Some(challenge) = challenge else { return Ok(None) };
        let (value, shown) = match challenge {
            Challenge::Basic => match self.credentials.current().await? {
                Credentials::Password { username, password } => {
                    (basic(&username, &password), Some(Credentials::Password { username, password }))
                }
                _ => return Ok(None),
            },
            Challenge::Bearer { realm, service } => {
                let known = if fresh { None } else { self.tokens.get(&scope.0).await };
                let token = match known {
                    Some(token) => token,
                    None => self.token(realm, service.as_deref(), scope).await?,
                };
                (format!("Bearer {token}"), None)
            }
        };
        headers.insert(AUTHORIZATION, token::sensitive(value)?);
        Ok(shown)
    }

    /// Requests a token from the token server of a challenge, if its URL is allowed.
    async fn token(&self, realm: &str, service: Option<&str>, scope: &Scope) -> Result<String> {
        let what = format!("a token for {}", self.location.authority());
        let url = self.location.base.join(realm).map_err(|error| Error::malformed(what.as_str(), error))?;
        self.allow(&what, &url)?;
        let mut credentials = self.credentials.current().await?;
        let mut response = self.ask_for_token(&what, &url, service, scope, &credentials).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.credentials.renew(&credentials).await? {
            credentials = self.credentials.current().await?;
            response = self.ask_for_token(&what, &url, service, scope, &credentials).await?;
        }
        match response.status() {
            StatusCode::UNAUTHORIZED => return Err(self.unauthorized(&what)),
            status if !status.is_success() => return Err(refusal(&what, response).await),
            _ => {}
        }
        let issued = Issued::read(&what, response).await?;
        let secret = issued.secret().ok_or_else(|| Error::malformed(what, "the answer has no token"))?.to_owned();
        self.tokens.put(&scope.0, &issued).await;
        Ok(secret)
    }

    /// Requests a token and follows allowed redirects. Only the origin of the realm receives the credentials.
    async fn ask_for_token(
        &self,
        what: &str,
        realm: &Url,
        service: Option<&str>,
        scope: &Scope,
        credentials: &Credentials,
    ) -> Result<Response> {
        let mut request = TokenRequest::new(realm.clone(), service, &scope.0, credentials)?;
        for _ in 0..=REDIRECTS {
            self.admit(what, &request.url).await?;
            let sent = request.build(&self.http).send();
            let response = timeout(ANSWER, sent).await.map_err(|_| Error::Stalled("a token"))?;
            let response = response.map_err(|error| self.unsent(what, &request.url, &error))?;
            if !leads_on(&request.method, response.status()) {
                return Ok(response);
            }
            let url = self.target(what, &request.url, response.headers())?;
            request = request.redirected(what, url)?;
        }
        Err(Error::malformed(what, "it is redirected too often"))
    }

    /// Returns the URL in the `Location` of a response, if it is allowed.
    pub fn target(&self, what: &str, from: &Url, headers: &HeaderMap) -> Result<Url> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| Error::malformed(what, "the answer has no Location"))?;
        if location.len() > MAX_LOCATION {
            let reason = format!("its Location has {} bytes, the most is {MAX_LOCATION}", location.len());
            return Err(Error::malformed(what, reason));
        }
        let url = from.join(location).map_err(|error| Error::malformed(what, format!("its Location: {error}")))?;
        let url = self.secured(url);
        self.allow(what, &url)?;
        Ok(url)
    }

    /// Upgrades a URL of the registry itself from `http` to `https`, if the region uses TLS: a registry behind a proxy
    /// that terminates TLS often does not know its own scheme.
    fn secured(&self, mut url: Url) -> Url {
        let base = &self.location.base;
        let is_own_host = url.host() == base.host() && (url.port().is_none() || url.port() == base.port());
        // The port is absent or the registry's own. Both setters succeed for an `http` URL.
        if url.scheme() == "http" && base.scheme() == "https" && is_own_host {
            let _ = url.set_scheme(base.scheme());
            let _ = url.set_port(base.port());
        }
        url
    }

    /// Returns the error of a request without a response. Names the proxy if the request used one.
    fn unsent(&self, what: impl Into<ForeignText>, url: &Url, error: &reqwest::Error) -> Error {
        match (transport(what, error), self.egress.proxy_for(url)) {
            (Error::Transport { what, problem }, Some(proxy)) => Error::Transport {
                what,
                problem: ForeignText::new(format_args!("by way of the proxy {proxy}: {problem}")),
            },
            (error, _) => error,
        }
    }

    /// Rejects a URL that the proxy must not be used for.
    async fn admit(&self, what: &str, url: &Url) -> Result<()> {
        self.egress.admit(url).await.map_err(|refused| match refused {
            NotAdmitted::Forbidden(source) => Error::Forbidden { what: what.into(), source },
            unresolved @ NotAdmitted::Unresolved { .. } => {
                Error::Transport { what: what.into(), problem: ForeignText::new(unresolved) }
            }
        })
    }

    /// Rejects a URL that is neither the registry's nor one of an allowed host.
    pub fn allow(&self, what: &str, url: &Url) -> Result<()> {
        let authority = authority(url);
        let listed = self.also_hosts.iter().any(|also| match also.strip_prefix("*.") {
            Some(domain) => authority.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
            None => *also == authority,
        });
        let secure = url.scheme() == "https" || url.scheme() == "http" && self.location.is_plain();
        let advice = if !url.username().is_empty() || url.password().is_some() {
            "which would be shown a name and a password that are not the region's; the registry has to leave them out"
        } else if !matches!(url.scheme(), "http" | "https") {
            "which can't be asked for; the registry has to name https, http or a path alone"
        } else if !secure {
            "without TLS, and the region is reached with it; the registry, or the proxy before it (X-Forwarded-Proto), has to name https or a path alone"
        } else if !self.is_own(url) && !listed && self.egress.check(url).is_err() {
            "which is an address that is never contacted; the registry has to give the content by itself"
        } else if !self.is_own(url) && !listed {
            "which is not the configured store; if that is right, name the host in the region's also_hosts"
        } else {
            return self.egress.check(url).map_err(|source| Error::Forbidden { what: what.into(), source });
        };
        let to = ForeignText::value(format_args!("{}://{authority}", url.scheme()));
        Err(Error::Elsewhere { what: what.into(), to, advice })
    }

    fn is_own(&self, url: &Url) -> bool {
        let base = &self.location.base;
        url.scheme() == base.scheme()
            && url.host() == base.host()
            && url.port_or_known_default() == base.port_or_known_default()
    }

    /// Returns the remembered challenge. It applies to the registry's own URLs only.
    fn known_challenge(&self, url: &Url) -> Option<Arc<Challenge>> {
        self.challenge.load_full().filter(|_| self.is_own(url))
    }

    fn remember_challenge(&self, challenge: Arc<Challenge>) {
        self.challenge.store(Some(challenge));
    }

    fn forget_challenge(&self) -> Option<Arc<Challenge>> {
        self.challenge.store(None);
        None
    }

    fn unauthorized(&self, what: &str) -> Error {
        let host = self.location.authority();
        let detail = if self.credentials.is_anonymous() {
            format!(" ({host} wants credentials and the region has none)")
        } else {
            format!(" ({host} refuses the region's credentials)")
        };
        Error::Status { what: what.into(), status: StatusCode::UNAUTHORIZED, detail: detail.into(), retry_after: None }
    }
}

/// Returns whether a request with this response follows a redirect (RFC 9110, section 15.4). A write follows it only if
/// the method and the body stay the same.
pub fn leads_on(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => method == Method::GET || method == Method::HEAD,
        _ => false,
    }
}

/// Returns whether the status means that the registry does not support `HEAD`.
pub fn refuses_head(status: StatusCode) -> bool {
    matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

/// Describes a request without its query, which may contain a secret.
pub fn what(method: &Method, url: &Url) -> String {
    format!("{method} {}", request_span::shown(url))
}

/// Returns a header, or an error if its value is invalid.
pub fn header(name: HeaderName, value: impl Into<String>) -> Result<(HeaderName, HeaderValue)> {
    let value = HeaderValue::try_from(value.into()).map_err(|error| Error::malformed(name.as_str(), error))?;
    Ok((name, value))
}
