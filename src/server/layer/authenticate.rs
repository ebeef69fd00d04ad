//! Turns a credential into a caller. Without one, nothing further in is reached.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use opentelemetry::trace::TraceId;
use tokio::time::Instant;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use super::{BoxFuture, Refusal, lasts, read_message, request_id, standing::Credential, trace_id};
use crate::{
    audit::{self, Audit, Unwritten},
    contract::{
        Contract, Failure,
        v1::CommonErrorCode::{
            IncompleteSignature, InvalidAccessKeyIdNotFound, InvalidTimeStampExpired, MissingCredentials,
            SignatureDoesNotMatch, SignatureNonceUsed,
        },
    },
    domain::{Clock, RequestId, Timestamp, with_causes},
    identity::{Caller, CurrentDirectory, Method, Unproven, acs3},
    metrics,
    server::{
        RETRY_AFTER,
        openapi::{Head, Original},
        peer::Peer,
        refusals::{Refusals, Refused},
        source_pool::SourcePool,
    },
    state::State,
};

/// What the layer needs.
#[derive(Debug)]
pub struct Authentication {
    /// Everybody who may call, as the configuration has it now.
    pub directory: Arc<CurrentDirectory>,
    /// Who failed lately.
    pub refusals: Arc<Refusals>,
    /// Places for messages that are read before it is proved who sends them.
    pub unproven: SourcePool,
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
        match authentication.at_once(&request) {
            Ok(Presented::Caller(caller)) => {
                authentication.enter(&mut request, caller);
                Either::Left(self.inner.call(request))
            }
            Ok(Presented::Signature) => {
                let contract = authentication.contract;
                // The clone is made ready some time; this one is.
                let clone = self.inner.clone();
                let mut inner = mem::replace(&mut self.inner, clone);
                let pending = Pending::of(Arc::clone(authentication), &request);
                Either::Right(Box::pin(async move {
                    match pending.authentication.signature(&mut request).await {
                        Ok(caller) => {
                            pending.proved().enter(&mut request, caller);
                            inner.call(request).await
                        }
                        Err(SignatureRefusal::Rejected(rejected)) => {
                            drop(request);
                            Ok(pending.reject(rejected).await)
                        }
                        Err(SignatureRefusal::Unavailable(failure)) => {
                            pending.proved();
                            Ok(super::refuse(&failure, contract, request_id(&request)))
                        }
                    }
                }))
            }
            Err(rejected) => {
                let pending = Pending::of(Arc::clone(authentication), &request);
                Either::Right(Box::pin(async move { Ok(pending.reject(rejected).await) }))
            }
        }
    }
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
    refusal: Refusal,
    why: String,
}

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Self { refusal: Refusal::Failure(failure), why: "no credential".to_owned() }
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
        Self { refusal: Refusal::Failure(Failure::new(code, why.as_str())), why }
    }
}

enum SignatureRefusal {
    Rejected(Rejected),
    /// The signature is good, and something of ours is not.
    Unavailable(Failure),
}

impl Authentication {
    /// Whatever can be said without reading the message.
    fn at_once(&self, request: &Request<Body>) -> Result<Presented, Rejected> {
        let directory = self.directory.load();
        let original = request.extensions().get::<Original>();
        if original.is_some_and(|original| original.signed_by_parameters) {
            let why = "Signatures by parameters (HMAC-SHA1) are not taken. Sign with ACS3-HMAC-SHA256";
            let refusal = Refusal::Failure(Failure::new(IncompleteSignature, why));
            return Err(Rejected { refusal, why: why.to_owned() });
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
            // Nobody waits for the message of one that can't be good.
            let key = acs3::Authorization::of(request.headers()).map(|authorization| authorization.credential);
            return match key {
                Some(key) if directory.access_key(key).is_none() => Err(Unproven::Unknown.into()),
                _ => Ok(Presented::Signature),
            };
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
        let unread = |refusal: Refusal| {
            let why = "the message did not come whole".to_owned();
            SignatureRefusal::Rejected(Rejected { refusal, why })
        };
        let original = request.extensions_mut().remove::<Original>();
        let (head, content) = match original {
            Some(Original { head, content, .. }) => {
                (head, content.map_err(|failure| unread(Refusal::Failure(failure)))?)
            }
            None => {
                let full = || {
                    let failure = Failure::unavailable("Too many signed requests are being read", RETRY_AFTER);
                    let why = "no place to read the message".to_owned();
                    SignatureRefusal::Rejected(Rejected { refusal: Refusal::Failure(failure), why })
                };
                let place = self.unproven.enter(request.extensions().get::<Peer>()).ok_or_else(full)?;
                let message = read_message(request).await.map_err(unread)?;
                drop(place);
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
        let directory = Arc::clone(&self.directory.load());
        let verified = directory.access_keys().verify(&signed, &content, self.clock.now()).map_err(rejected)?;
        match self.state.nonce_remember(&verified.nonce).await {
            Ok(true) => Ok(verified.caller),
            Ok(false) => Err(rejected(Unproven::Replayed)),
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "a nonce could not be remembered");
                Err(SignatureRefusal::Unavailable(error.into()))
            }
        }
    }

    /// Lets a caller in, with what is needed to ask for its credential again while its call lasts.
    fn enter(&self, request: &mut Request<Body>, caller: Caller) {
        Span::current().record("appferry.principal", caller.identity.principal.as_str());
        let path = request.uri().path();
        if self.contract.authorizations.get(path).is_some_and(|row| lasts(path, row)) {
            let credential = Credential {
                directory: Arc::clone(&self.directory),
                changes: self.directory.changes(),
                method: caller.method,
                header: request.headers().get(AUTHORIZATION).cloned(),
                certificate: request.extensions().get::<Peer>().and_then(|peer| peer.certificate.clone()),
            };
            request.extensions_mut().insert(credential);
        }
        request.extensions_mut().insert(caller);
    }
}

/// Whose a credential is now that has been taken before.
pub fn again(credential: &Credential, now: Timestamp) -> Result<Caller, Unproven> {
    let directory = credential.directory.load();
    let header = credential.header.as_ref().and_then(|header| header.to_str().ok()).unwrap_or_default();
    match (credential.method, &credential.certificate) {
        (Method::Certificate, Some(names)) => directory.certificate(names),
        (Method::Certificate, None) => Err(Unproven::Unknown),
        (Method::Token | Method::Jwt, _) => {
            let (_, token) = header.split_once(' ').ok_or(Unproven::Unknown)?;
            directory.bearer(token.trim_ascii(), now)
        }
        // It was signed once. What counts is whether the key is still there.
        (Method::AccessKey, _) => {
            let mut headers = HeaderMap::new();
            headers.extend(credential.header.clone().map(|header| (AUTHORIZATION, header)));
            let key = acs3::Authorization::of(&headers).and_then(|key| directory.access_key(key.credential));
            key.ok_or(Unproven::Unknown)
        }
    }
}

/// A call that has proved nothing yet. If it goes away, or its deadline passes, without having done so, that counts as a failure too.
struct Pending {
    authentication: Arc<Authentication>,
    request_id: RequestId,
    trace_id: Option<TraceId>,
    /// The method, if it is one of the contract's.
    path: Option<&'static str>,
    peer: Option<Peer>,
    settled: bool,
}

impl Pending {
    fn of(authentication: Arc<Authentication>, request: &Request<Body>) -> Self {
        Self {
            request_id: request_id(request),
            trace_id: trace_id(request),
            path: authentication.contract.authorizations.path(request.uri().path()),
            peer: request.extensions().get().cloned(),
            authentication,
            settled: false,
        }
    }

    /// It has proved who calls.
    fn proved(mut self) -> Arc<Authentication> {
        self.settled = true;
        Arc::clone(&self.authentication)
    }

    /// Refuses it, and writes that down.
    async fn reject(mut self, rejected: Rejected) -> Response<Body> {
        self.settled = true;
        let Rejected { mut refusal, why } = rejected;
        let (refused, unwritten) = self.write_down(&why);
        if let Refused::Throttled(wait) = refused {
            refusal = Refusal::Failure(Failure::throttled(wait));
        }
        let written = match unwritten {
            Some(unwritten) => unwritten.written().await,
            None => Ok(()),
        };
        written.map_err(Refusal::from).err().unwrap_or(refusal).answer(self.authentication.contract, self.request_id)
    }

    fn write_down(&self, why: &str) -> (Refused, Option<Unwritten>) {
        let Authentication { refusals, contract, clock, audit, .. } = &*self.authentication;
        let action = self.path.and_then(|path| contract.authorizations.get(path)).map(|row| row.action.as_str());
        metrics::decided(action, "deny");
        let refused = self.peer.as_ref().map_or(Refused::Line, |peer| refusals.refused(peer.source(), Instant::now()));
        if refused != Refused::Line {
            return (refused, None);
        }
        let record = audit::Record {
            time: clock.now(),
            request_id: self.request_id,
            trace_id: self.trace_id,
            principal: None,
            authenticated_by: None,
            method: self.path,
            action,
            resource: None,
            decision: audit::Verdict::Deny,
            reason: &why,
            source_ip: self.peer.as_ref().map(|peer| peer.address),
        };
        (refused, audit.record(&record))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Nobody is there to wait for the audit log; what it does not take is counted.
        if !self.settled
            && self.write_down("the caller gave up before it proved anything, or took too long").1.is_some()
        {
            metrics::audit_lost(1);
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
