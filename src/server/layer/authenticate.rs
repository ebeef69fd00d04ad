//! Turns a credential into a caller. Without one, nothing further in is reached.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use opentelemetry::trace::TraceId;
use tokio::time::Instant;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use super::{BoxFuture, Refusal, read_message, request_id, trace_id};
use crate::{
    audit::{self, Audit},
    contract::{
        Contract, Failure,
        v1::CommonErrorCode::{
            IncompleteSignature, InvalidAccessKeyIdNotFound, InvalidTimeStampExpired, MissingCredentials,
            SignatureDoesNotMatch, SignatureNonceUsed,
        },
    },
    domain::{Clock, RequestId, with_causes},
    identity::{Caller, Directory, Unproven, acs3},
    metrics,
    server::{
        attempts::Attempts,
        openapi::{Head, Original},
        peer::Peer,
    },
    state::State,
};

/// What the layer needs.
#[derive(Debug)]
pub struct Authentication {
    /// Everybody who may call, as the configuration has it now.
    pub directory: Arc<ArcSwap<Directory>>,
    /// Who failed lately.
    pub attempts: Attempts,
    /// Remembers nonces.
    pub state: State,
    /// Tells whether a credential has expired.
    pub clock: Clock,
    /// Takes down who is refused.
    pub audit: Audit,
    /// The contract's tables.
    pub contract: &'static Contract,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct AuthenticateLayer(pub Arc<Authentication>);

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, authentication: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Authenticate<S> {
    inner: S,
    authentication: Arc<Authentication>,
}

impl<S> Service<Request<Body>> for Authenticate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let authentication = &self.authentication;
        let peer = request.extensions().get::<Peer>();
        let wait = peer.and_then(|peer| authentication.attempts.wait(peer.source(), Instant::now()));
        let presented = match wait {
            Some(wait) => Err(Rejected { failure: Failure::throttled(wait), why: "too many failures".to_owned() }),
            None => authentication.at_once(&request),
        };
        match presented {
            Ok(Presented::Caller(caller)) => {
                enter(&mut request, caller);
                Either::Left(self.inner.call(request))
            }
            Ok(Presented::Signature) => {
                // The clone is made ready some time; this one is.
                let clone = self.inner.clone();
                let mut inner = mem::replace(&mut self.inner, clone);
                let authentication = Arc::clone(authentication);
                Either::Right(Box::pin(async move {
                    match authentication.signature(&mut request).await {
                        Ok(caller) => {
                            enter(&mut request, caller);
                            inner.call(request).await
                        }
                        Err(SignatureRefusal::Rejected(rejected)) => {
                            let answer = authentication.reject(rejected, Refused::of(&request));
                            drop(request);
                            Ok(answer.await)
                        }
                        Err(SignatureRefusal::Other(refusal)) => {
                            Ok(refusal.answer(authentication.contract, request_id(&request)))
                        }
                    }
                }))
            }
            Err(rejected) => {
                let (authentication, refused) = (Arc::clone(authentication), Refused::of(&request));
                Either::Right(Box::pin(async move { Ok(authentication.reject(rejected, refused).await) }))
            }
        }
    }
}

fn enter(request: &mut Request<Body>, caller: Caller) {
    Span::current().record("appferry.principal", caller.identity.principal.as_str());
    request.extensions_mut().insert(caller);
}

/// What a call shows.
enum Presented {
    /// Who it is.
    Caller(Caller),
    /// A signature, for which the whole message is needed.
    Signature,
}

/// Why a credential is not taken: what the caller is told, and what is written down.
struct Rejected {
    failure: Failure,
    why: String,
}

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Self { failure, why: "no credential".to_owned() }
    }
}

impl From<Unproven> for Rejected {
    fn from(unproven: Unproven) -> Self {
        let why = unproven.to_string();
        let code = match unproven {
            Unproven::Unknown => InvalidAccessKeyIdNotFound,
            Unproven::Invalid(_) => MissingCredentials,
            Unproven::Signature(_) => SignatureDoesNotMatch,
            Unproven::Stale { .. } => InvalidTimeStampExpired,
            Unproven::Replayed => SignatureNonceUsed,
        };
        Self { failure: Failure::new(code, why.as_str()), why }
    }
}

enum SignatureRefusal {
    Rejected(Rejected),
    /// Nothing that the credential is to blame for.
    Other(Refusal),
}

impl Authentication {
    /// Whatever can be said without reading the message.
    fn at_once(&self, request: &Request<Body>) -> Result<Presented, Rejected> {
        let directory = self.directory.load();
        let original = request.extensions().get::<Original>();
        if original.is_some_and(|original| original.signed_by_parameters) {
            let why = "Signatures by parameters (HMAC-SHA1) are not taken. Sign with ACS3-HMAC-SHA256";
            return Err(Rejected { failure: Failure::new(IncompleteSignature, why), why: why.to_owned() });
        }
        let Some(value) = authorization(request.headers())? else {
            let peer = request.extensions().get::<Peer>();
            return match peer.and_then(|peer| peer.certificate.as_ref()) {
                Some(names) => Ok(Presented::Caller(directory.certificate(names)?)),
                None if original.is_some() => Err(missing("Sign the request with ACS3-HMAC-SHA256").into()),
                None => Err(missing("Send the header `authorization: Bearer TOKEN`").into()),
            };
        };
        let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
        if scheme == acs3::SCHEME && (original.is_some() || !directory.access_keys().is_empty()) {
            return Ok(Presented::Signature);
        }
        let token = rest.trim_ascii();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return Err(missing("The authorization header is not of the form `Bearer TOKEN`").into());
        }
        Ok(Presented::Caller(directory.bearer(token, self.clock.now())?))
    }

    /// Verifies the signature of a whole request, and that it has not been made before.
    async fn signature(&self, request: &mut Request<Body>) -> Result<Caller, SignatureRefusal> {
        let rejected = |unproven: Unproven| SignatureRefusal::Rejected(unproven.into());
        let original = request.extensions_mut().remove::<Original>();
        let (head, content) = match original {
            Some(Original { head, content, .. }) => {
                (head, content.map_err(|failure| SignatureRefusal::Other(Refusal::Failure(failure)))?)
            }
            None => {
                let message = read_message(request).await.map_err(SignatureRefusal::Other)?;
                (Head::of(request), message)
            }
        };
        let signed = acs3::Signed {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &head.headers,
            authority: head.uri.authority().map(http::uri::Authority::as_str),
        };
        let directory = self.directory.load_full();
        let verified = directory.access_keys().verify(&signed, &content, self.clock.now()).map_err(rejected)?;
        match self.state.nonce_remember(&verified.nonce).await {
            Ok(true) => Ok(verified.caller),
            Ok(false) => Err(rejected(Unproven::Replayed)),
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "a nonce could not be remembered");
                Err(SignatureRefusal::Other(Refusal::Failure(error.into())))
            }
        }
    }

    async fn reject(&self, rejected: Rejected, refused: Refused) -> Response<Body> {
        let Refused { request_id, trace_id, path, peer } = refused;
        if let Some(peer) = peer.as_ref().filter(|_| !rejected.failure.is_throttling()) {
            self.attempts.failed(peer.source(), Instant::now());
        }
        let action = self.contract.authorizations.get(&path).map(|row| row.action.as_str());
        let record = audit::Record {
            time: self.clock.now(),
            request_id,
            trace_id,
            principal: None,
            authenticated_by: None,
            method: &path,
            action,
            resource: None,
            decision: audit::Verdict::Deny,
            reason: &rejected.why,
            source_ip: peer.map(|peer| peer.address),
        };
        metrics::decided(action, "deny");
        if let Some(unwritten) = self.audit.record(&record)
            && let Err(blocked) = unwritten.written().await
        {
            return Refusal::from(blocked).answer(self.contract, request_id);
        }
        super::refuse(&rejected.failure, self.contract, request_id)
    }
}

/// A call that is refused, as far as that has to be told.
struct Refused {
    request_id: RequestId,
    trace_id: Option<TraceId>,
    path: String,
    peer: Option<Peer>,
}

impl Refused {
    fn of(request: &Request<Body>) -> Self {
        Self {
            request_id: request_id(request),
            trace_id: trace_id(request),
            path: request.uri().path().to_owned(),
            peer: request.extensions().get().cloned(),
        }
    }
}

fn missing(why: &str) -> Failure {
    Failure::new(MissingCredentials, why)
}

/// The value of the authorization header, if there is one.
fn authorization(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(missing("There is more than one authorization header"));
    }
    value.to_str().map(Some).map_err(|_| missing("The authorization header is not text"))
}
