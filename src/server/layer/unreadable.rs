//! Tells why a request could not be turned into a call, to those who may make that call.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Answer, refuse, request_id};
use crate::{contract::Contract, server::openapi::Unreadable};

/// See the module.
#[derive(Debug, Clone)]
pub struct UnreadableLayer(pub &'static Contract);

impl<S> Layer<S> for UnreadableLayer {
    type Service = RefuseUnreadable<S>;

    fn layer(&self, inner: S) -> RefuseUnreadable<S> {
        RefuseUnreadable { inner, contract: self.0 }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct RefuseUnreadable<S> {
    inner: S,
    contract: &'static Contract,
}

impl<S> Service<Request<Body>> for RefuseUnreadable<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.extensions().get::<Unreadable>() {
            None => Either::Left(self.inner.call(request)),
            Some(Unreadable(failure)) => Either::Right(ready(Ok(refuse(failure, self.contract, request_id(&request))))),
        }
    }
}
