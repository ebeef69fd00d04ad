//! Rejects requests that a frontend could not turn into a call. Runs after authorization: the error is for permitted
//! callers only.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{HttpResult, MalformedRequest, error_response, request_id};
use crate::contract::Contract;

/// Adds [`RejectMalformed`].
#[derive(Debug, Clone)]
pub struct RejectMalformedLayer(pub &'static Contract);

impl<S> Layer<S> for RejectMalformedLayer {
    type Service = RejectMalformed<S>;

    fn layer(&self, inner: S) -> RejectMalformed<S> {
        RejectMalformed { inner, contract: self.0 }
    }
}

/// Answers requests that carry a [`MalformedRequest`] with its error.
#[derive(Debug, Clone)]
pub struct RejectMalformed<S> {
    inner: S,
    contract: &'static Contract,
}

impl<S> Service<Request<Body>> for RejectMalformed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<HttpResult>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.extensions().get::<MalformedRequest>() {
            None => Either::Left(self.inner.call(request)),
            Some(MalformedRequest(error)) => {
                Either::Right(ready(Ok(error_response(error, self.contract, request_id(&request)))))
            }
        }
    }
}
