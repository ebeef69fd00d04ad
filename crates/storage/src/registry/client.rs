//! HTTP client of one registry: adds authorization, limits time and size, and connects to allowed hosts only.

mod authorization;
mod redirect;
mod request;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use domain::ForeignText;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::ACCEPT_ENCODING};
use reqwest::{Body, Response};
use tokio::time::timeout;
use url::Url;

pub use redirect::{REDIRECTS, leads_on};
pub use request::{Ask, Scope, header, refuses_head, what};

use super::{challenge::Challenge, credentials::CredentialProvider, token::Tokens};
use crate::{
    Error, Result,
    egress::{Egress, NotAdmitted},
    http_response::{is_transient, refusal, retry_after, transport},
    location::RegistryLocation,
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
            // Digests apply to the stored bytes, so the transfer must not compress them.
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
                // Some registries signal a rate limit by this status, and others check permissions at a service that
                // may fail for a moment.
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

    /// Like [`Self::ask_once`], with another timeout until the head of the response.
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

    /// Sends a request with a streamed body, once. Uses the authorization that earlier requests have renewed shortly
    /// before. If the registry rejects the authorization, it has expired, and the error can be retried.
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

    /// Rejects a URL that must not be requested through the proxy.
    async fn admit(&self, what: &str, url: &Url) -> Result<()> {
        self.egress.admit(url).await.map_err(|refused| match refused {
            NotAdmitted::Forbidden(source) => Error::Forbidden { what: what.into(), source },
            unresolved @ NotAdmitted::Unresolved { .. } => {
                Error::Transport { what: what.into(), problem: ForeignText::new(unresolved) }
            }
        })
    }
}
