//! Caps in-flight calls. Excess calls fail with UNAVAILABLE and a retry delay.
//!
//! Capacity is acquired in `call`, not in `poll_ready`, because a connection keeps its stack and would keep the
//! acquired capacity with it.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{HttpResult, error_response, request_id};
use crate::{
    contract::{ApiError, Contract},
    server::RETRY_AFTER,
};

/// Adds `InFlightLimit`. All services of a layer share its capacity.
#[derive(Debug, Clone)]
pub struct InFlightLimitLayer {
    capacity: Arc<Semaphore>,
    contract: &'static Contract,
}

impl InFlightLimitLayer {
    /// Caps in-flight calls at `limit`.
    #[must_use]
    pub fn new(limit: usize, contract: &'static Contract) -> Self {
        Self { capacity: Arc::new(Semaphore::new(limit)), contract }
    }
}

impl<S> Layer<S> for InFlightLimitLayer {
    type Service = InFlightLimit<S>;

    fn layer(&self, inner: S) -> InFlightLimit<S> {
        InFlightLimit { inner, layer: self.clone() }
    }
}

/// Caps in-flight calls of a service.
#[derive(Debug, Clone)]
pub struct InFlightLimit<S> {
    inner: S,
    layer: InFlightLimitLayer,
}

impl<S> Service<Request<Body>> for InFlightLimit<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<InFlight<S::Future>, Ready<HttpResult>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let InFlightLimitLayer { capacity, contract } = &self.layer;
        if let Ok(permit) = Arc::clone(capacity).try_acquire_owned() {
            return Either::Left(InFlight { inner: self.inner.call(request), _permit: permit });
        }
        let error = ApiError::unavailable("Too many calls are in flight; repeat this one later", RETRY_AFTER);
        Either::Right(ready(Ok(error_response(&error, contract, request_id(&request)))))
    }
}

pin_project! {
    /// A call that uses capacity until its response begins.
    #[derive(Debug)]
    pub struct InFlight<F> {
        #[pin]
        inner: F,
        _permit: OwnedSemaphorePermit,
    }
}

impl<F: Future<Output = HttpResult>> Future for InFlight<F> {
    type Output = HttpResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResult> {
        self.project().inner.poll(cx)
    }
}
