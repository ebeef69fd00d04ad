//! Carries out so many calls at the same time, and no more: one that finds no room is told so at once, and when to come back.
//!
//! Room is looked for when a call comes, and never before: a connection keeps its stack, and must not keep a place in it.

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

use super::{Answer, refuse, request_id};
use crate::{
    contract::{Contract, Failure},
    server::RETRY_AFTER,
};

/// See the module. Its services count calls together.
#[derive(Debug, Clone)]
pub struct LimitLayer {
    places: Arc<Semaphore>,
    contract: &'static Contract,
}

impl LimitLayer {
    /// So many calls at the same time.
    #[must_use]
    pub fn new(most: usize, contract: &'static Contract) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), contract }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Limit<S> {
    inner: S,
    layer: LimitLayer,
}

impl<S> Service<Request<Body>> for Limit<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Placed<S::Future>, Ready<Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let LimitLayer { places, contract } = &self.layer;
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Either::Left(Placed { inner: self.inner.call(request), _place: place });
        }
        let failure = Failure::unavailable("Too many calls are being carried out; repeat this one later", RETRY_AFTER);
        Either::Right(ready(Ok(refuse(&failure, contract, request_id(&request)))))
    }
}

pin_project! {
    /// A call that has a place, until its answer begins.
    #[derive(Debug)]
    pub struct Placed<F> {
        #[pin]
        inner: F,
        _place: OwnedSemaphorePermit,
    }
}

impl<F: Future<Output = Answer>> Future for Placed<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        self.project().inner.poll(cx)
    }
}
