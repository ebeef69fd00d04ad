//! Answers for the limits further in: a call that finds no room is told so at once, and when to come back.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{BoxError, Layer, Service, load_shed::error::Overloaded};

use super::{Answer, refuse, request_id};
use crate::{
    contract::{Contract, Failure, v1::CommonErrorCode},
    domain::RequestId,
    server::RETRY_AFTER,
};

/// See the module.
#[derive(Debug, Clone)]
pub struct ShedLayer(Arc<Contract>);

impl ShedLayer {
    pub fn new(contract: Arc<Contract>) -> Self {
        Self(contract)
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { inner, contract: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Shed<S> {
    inner: S,
    contract: Arc<Contract>,
}

impl<S> Service<Request<Body>> for Shed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // What is behind is a `LoadShed`: it is always ready, and answers a call that it has no room for with an error.
        self.inner.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let request_id = request_id(&request);
        ResponseFuture { inner: self.inner.call(request), request_id, contract: Arc::clone(&self.contract) }
    }
}

pin_project! {
    /// The answer, or one for it.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        request_id: RequestId,
        contract: Arc<Contract>,
    }
}

impl<F: Future<Output = Result<Response<Body>, BoxError>>> Future for ResponseFuture<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        Poll::Ready(Ok(ready!(this.inner.poll(cx)).unwrap_or_else(|error| {
            let failure = if error.is::<Overloaded>() {
                Failure::unavailable("Too many calls are being carried out; repeat this one later", RETRY_AFTER)
            } else {
                tracing::error!(%error, "the stack failed");
                Failure::new(CommonErrorCode::InternalError, "")
            };
            refuse(&failure, this.contract, *this.request_id)
        })))
    }
}
