//! Turns a credential into a principal. Without one, nothing further in is reached.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use super::{Answer, refuse, request_id};
use crate::{
    contract::{
        Contract, Failure,
        v1::CommonErrorCode::{InvalidAccessKeyIdNotFound, MissingCredentials},
    },
    server::{Identities, Identity},
};

/// See the module.
#[derive(Debug, Clone)]
pub struct AuthenticateLayer {
    identities: Arc<Identities>,
    contract: Arc<Contract>,
}

impl AuthenticateLayer {
    pub fn new(identities: Arc<Identities>, contract: Arc<Contract>) -> Self {
        Self { identities, contract }
    }
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Authenticate<S> {
    inner: S,
    layer: AuthenticateLayer,
}

impl<S> Service<Request<Body>> for Authenticate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match authenticate(&self.layer.identities, request.headers()) {
            Ok(identity) => {
                Span::current().record("appferry.principal", identity.principal.as_str());
                request.extensions_mut().insert(identity);
                Either::Left(self.inner.call(request))
            }
            Err(failure) => {
                tracing::info!(request_id = %request_id(&request), "a call without a valid credential was refused");
                Either::Right(ready(Ok(refuse(&failure, &self.layer.contract, request_id(&request)))))
            }
        }
    }
}

/// Reads a bearer token (RFC 6750, section 2.1) and finds whose it is.
fn authenticate(identities: &Identities, headers: &HeaderMap) -> Result<Arc<Identity>, Failure> {
    let missing = |why: &str| Failure::new(MissingCredentials, why);
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| missing("Send the header `authorization: Bearer TOKEN`"))?;
    if values.next().is_some() {
        return Err(missing("There is more than one authorization header"));
    }
    let (scheme, token) = match value.as_bytes().iter().position(|&b| b == b' ') {
        Some(space) => value.as_bytes().split_at(space),
        None => (value.as_bytes(), &[][..]),
    };
    let token = token.trim_ascii();
    if !scheme.eq_ignore_ascii_case(b"bearer") || token.is_empty() {
        return Err(missing("The authorization header is not of the form `Bearer TOKEN`"));
    }
    let unknown = || Failure::new(InvalidAccessKeyIdNotFound, "The bearer token is none that this service knows.");
    identities.find(token).cloned().ok_or_else(unknown)
}
