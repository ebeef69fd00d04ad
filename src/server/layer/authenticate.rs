//! Turns a credential into a caller. Without one, nothing further in is reached.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use super::{BoxFuture, Refusal, lasts, pending::Pending, read_message, request_id, standing::Credential};
use crate::{
    audit::Audit,
    contract::{
        Contract, Failure,
        v1::CommonErrorCode::{
            IncompleteSignature, InvalidAccessKeyIdNotFound, InvalidTimeStampExpired, MissingCredentials,
            SignatureDoesNotMatch, SignatureNonceUsed,
        },
    },
    db::Db,
    domain::{Clock, Timestamp, with_causes},
    identity::{Caller, CurrentDirectory, Method, Unproven, acs3},
    server::{
        RETRY_AFTER,
        openapi::{Head, Original},
        peer::Peer,
        refusals::Refusals,
        source_pool::SourcePool,
    },
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
    pub state: Db,
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
pub struct Rejected {
    pub refusal: Refusal,
    pub why: String,
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
        match self.state.nonce_claim(&verified.nonce).await {
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
