//! Authenticates callers by a bearer token, a TLS certificate or a signature. Unauthenticated calls are rejected here.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use super::{
    BoxFuture, OriginalRequest, RequestHead, error_response, is_long_running,
    message::{Rejection, read_message},
    reauthorize::PresentedCredential,
    request_id,
    unauthenticated::UnauthenticatedCall,
};
use crate::{
    audit::Audit,
    contract::{
        ApiError, Contract,
        v1::CommonErrorCode::{
            IncompleteSignature, InvalidAccessKeyIdNotFound, InvalidTimeStampExpired, MissingCredentials,
            SignatureDoesNotMatch, SignatureNonceUsed,
        },
    },
    db::Db,
    domain::{Clock, with_causes},
    identity::{AuthError, Caller, CurrentAuthenticator},
    server::{RETRY_AFTER, auth_throttle::AuthThrottle, listener::peer::Peer, source_pool::SourcePool},
};

/// The collaborators of [`AuthenticateLayer`].
#[derive(Debug)]
pub struct RequestAuthenticator {
    /// Checks credentials against the configuration in force.
    pub authenticator: Arc<CurrentAuthenticator>,
    /// Throttles addresses after repeated failures.
    pub auth_throttle: Arc<AuthThrottle>,
    /// Limits the messages of unauthenticated callers that are buffered at the same time.
    pub message_slots: SourcePool,
    /// Stores the nonces of signed requests.
    pub state: Db,
    /// The time that expiry is checked against.
    pub clock: Clock,
    /// Records rejections.
    pub audit: Audit,
    /// The tables of the contract.
    pub contract: &'static Contract,
}

/// Adds `Authenticate`.
#[derive(Debug, Clone)]
pub struct AuthenticateLayer(pub Arc<RequestAuthenticator>);

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, authenticator: Arc::clone(&self.0) }
    }
}

/// Authenticates the calls of a service; those that pass have a [`Caller`] in their extensions.
#[derive(Debug, Clone)]
pub struct Authenticate<S> {
    inner: S,
    authenticator: Arc<RequestAuthenticator>,
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
        let authenticator = &self.authenticator;
        match authenticator.by_headers(&request) {
            Ok(Presented::Caller(caller)) => {
                authenticator.accept(&mut request, caller);
                Either::Left(self.inner.call(request))
            }
            Ok(Presented::Signature) => {
                let contract = authenticator.contract;
                // The clone may not be ready yet; the service that was polled is.
                let clone = self.inner.clone();
                let mut inner = mem::replace(&mut self.inner, clone);
                let call = UnauthenticatedCall::new(Arc::clone(authenticator), &request);
                Either::Right(Box::pin(async move {
                    match call.authenticator.by_signature(&mut request).await {
                        Ok(caller) => {
                            call.settle().accept(&mut request, caller);
                            inner.call(request).await
                        }
                        Err(SignatureError::Rejected(rejected)) => {
                            drop(request);
                            Ok(call.reject(rejected).await)
                        }
                        Err(SignatureError::Unavailable(error)) => {
                            call.settle();
                            Ok(error_response(&error, contract, request_id(&request)))
                        }
                    }
                }))
            }
            Err(rejected) => {
                let call = UnauthenticatedCall::new(Arc::clone(authenticator), &request);
                Either::Right(Box::pin(async move { Ok(call.reject(rejected).await) }))
            }
        }
    }
}

/// The credential in the headers of a call, or in its connection's certificate.
enum Presented {
    Caller(Caller),
    /// A signature; verifying it needs the whole message.
    Signature,
}

/// A rejected credential: the response to the caller, and the reason for the audit log.
pub struct RejectedCredential {
    pub response: Rejection,
    pub reason: String,
}

impl RejectedCredential {
    fn new(error: ApiError, reason: &str) -> Self {
        Self { response: Rejection::Error(error), reason: reason.to_owned() }
    }

    fn incomplete_message(response: Rejection) -> Self {
        Self { response, reason: "the message did not arrive completely".to_owned() }
    }
}

impl From<ApiError> for RejectedCredential {
    fn from(error: ApiError) -> Self {
        Self::new(error, "no credential")
    }
}

impl From<AuthError> for RejectedCredential {
    fn from(error: AuthError) -> Self {
        let reason = error.to_string();
        let code = match error {
            AuthError::Unknown => InvalidAccessKeyIdNotFound,
            AuthError::Invalid(_) => MissingCredentials,
            AuthError::Signature(_) => SignatureDoesNotMatch,
            AuthError::Stale { .. } => InvalidTimeStampExpired,
            AuthError::Replayed => SignatureNonceUsed,
        };
        Self { response: Rejection::Error(ApiError::new(code, reason.as_str())), reason }
    }
}

enum SignatureError {
    Rejected(RejectedCredential),
    /// The signature is valid, but its nonce could not be stored.
    Unavailable(ApiError),
}

impl From<AuthError> for SignatureError {
    fn from(error: AuthError) -> Self {
        Self::Rejected(error.into())
    }
}

impl From<RejectedCredential> for SignatureError {
    fn from(rejected: RejectedCredential) -> Self {
        Self::Rejected(rejected)
    }
}

impl RequestAuthenticator {
    /// Authenticates a call without reading its message, unless its credential is a signature.
    fn by_headers(&self, request: &Request<Body>) -> Result<Presented, RejectedCredential> {
        let authenticator = self.authenticator.load();
        let original = request.extensions().get::<OriginalRequest>();
        if original.is_some_and(|original| original.signed_by_parameters) {
            let cause = "Signatures by parameters (HMAC-SHA1) are not supported. Sign with ACS3-HMAC-SHA256";
            return Err(RejectedCredential::new(ApiError::new(IncompleteSignature, cause), cause));
        }
        let Some(value) = authorization(request.headers())? else {
            let peer = request.extensions().get::<Peer>();
            return match peer.and_then(|peer| peer.certificate.as_ref()) {
                Some(names) => Ok(Presented::Caller(authenticator.certificate(names)?)),
                None if original.is_some() => Err(missing("Sign the request with ACS3-HMAC-SHA256").into()),
                None => Err(missing("Send the header `authorization: Bearer TOKEN`").into()),
            };
        };
        let (scheme, credential) = value.split_once(' ').unwrap_or((value, ""));
        if scheme == acs3::SCHEME && (original.is_some() || authenticator.has_access_keys()) {
            // An unknown key is rejected before its message is buffered.
            let key = acs3::AuthorizationHeader::parse(request.headers()).map(|header| header.credential);
            return match key {
                Some(key) if authenticator.access_key(key).is_none() => Err(AuthError::Unknown.into()),
                _ => Ok(Presented::Signature),
            };
        }
        let token = credential.trim_ascii();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return Err(missing("The authorization header is not of the form `Bearer TOKEN`").into());
        }
        Ok(Presented::Caller(authenticator.bearer(token, self.clock.now())?))
    }

    /// Verifies the signature of a whole request, and that its nonce is new.
    async fn by_signature(&self, request: &mut Request<Body>) -> Result<Caller, SignatureError> {
        let (head, content) = self.signed_parts(request).await?;
        let signed = acs3::SignedRequest {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &head.headers,
            authority: head.uri.authority().map(http::uri::Authority::as_str),
        };
        let authenticator = Arc::clone(&self.authenticator.load());
        let (caller, nonce) = authenticator.signed(&signed, &content, self.clock.now())?;
        match self.state.nonce_claim(&nonce).await {
            Ok(true) => Ok(caller),
            Ok(false) => Err(AuthError::Replayed.into()),
            Err(error) => {
                tracing::warn!(
                    error = %with_causes(&error),
                    "failed to store a nonce; signed call rejected, the caller may retry"
                );
                Err(SignatureError::Unavailable(error.into()))
            }
        }
    }

    /// Returns the head and the content that a signature covers. They belong to the HTTP request that a frontend
    /// received, or to the gRPC call itself, whose message is read for this purpose.
    async fn signed_parts(&self, request: &mut Request<Body>) -> Result<(RequestHead, Bytes), RejectedCredential> {
        if let Some(OriginalRequest { head, content, .. }) = request.extensions_mut().remove() {
            let content = content.map_err(Rejection::Error).map_err(RejectedCredential::incomplete_message)?;
            return Ok((head, content));
        }
        let busy = || {
            let error = ApiError::unavailable("Too many signed requests are being read", RETRY_AFTER);
            RejectedCredential::new(error, "no capacity to read the message")
        };
        let _slot = self.message_slots.try_acquire(request.extensions().get::<Peer>()).ok_or_else(busy)?;
        let message = read_message(request).await.map_err(RejectedCredential::incomplete_message)?;
        Ok((RequestHead::new(request), message))
    }

    /// Adds the caller to the call. Adds the caller's credential too if the call may outlive the credential.
    fn accept(&self, request: &mut Request<Body>, caller: Caller) {
        Span::current().record("appferry.principal", caller.identity.principal.as_str());
        let path = request.uri().path();
        if self.contract.authorizations.get(path).is_some_and(|row| is_long_running(path, row)) {
            let credential = PresentedCredential {
                authenticator: Arc::clone(&self.authenticator),
                changes: self.authenticator.changes(),
                method: caller.method,
                header: request.headers().get(AUTHORIZATION).cloned(),
                certificate: request.extensions().get::<Peer>().and_then(|peer| peer.certificate.clone()),
            };
            request.extensions_mut().insert(credential);
        }
        request.extensions_mut().insert(caller);
    }
}

fn missing(cause: &str) -> ApiError {
    ApiError::new(MissingCredentials, cause)
}

/// Returns the value of the authorization header, if there is one.
fn authorization(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(missing("There is more than one authorization header"));
    }
    value.to_str().map(Some).map_err(|_| missing("The authorization header is not text"))
}
