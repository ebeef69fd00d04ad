//! A layer that maps the outcome of a call to a response in the contract's form.

use std::{
    convert::Infallible,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{HttpResult, request_id};
use crate::{contract::Contract, domain::RequestId};

/// Maps the outcome of calls whose future is `F`.
pub trait MapOutcome<F: Future> {
    /// The future to poll instead of `F`.
    type Wrapped: Future;

    /// Calls the inner service and returns the future to poll.
    fn wrap(call: impl FnOnce() -> F) -> Self::Wrapped;

    /// Turns the output of the wrapped future into a response.
    fn map(outcome: <Self::Wrapped as Future>::Output, contract: &Contract, request_id: RequestId) -> Response<Body>;
}

/// Adds a mapping `M` to a service.
#[derive(Debug)]
pub struct MapOutcomeLayer<M> {
    contract: &'static Contract,
    mapping: PhantomData<fn() -> M>,
}

impl<M> MapOutcomeLayer<M> {
    pub fn new(contract: &'static Contract) -> Self {
        Self { contract, mapping: PhantomData }
    }
}

// Derived implementations would require that `M` is `Clone`.
impl<M> Clone for MapOutcomeLayer<M> {
    fn clone(&self) -> Self {
        Self::new(self.contract)
    }
}

impl<S, M> Layer<S> for MapOutcomeLayer<M> {
    type Service = MappedService<S, M>;

    fn layer(&self, inner: S) -> MappedService<S, M> {
        MappedService { inner, layer: self.clone() }
    }
}

/// The service of [`MapOutcomeLayer`].
#[derive(Debug)]
pub struct MappedService<S, M> {
    inner: S,
    layer: MapOutcomeLayer<M>,
}

impl<S: Clone, M> Clone for MappedService<S, M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, B, M> Service<Request<B>> for MappedService<S, M>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    M: MapOutcome<S::Future>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = MappedFuture<S::Future, M>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request_id = request_id(&request);
        let wrapped = M::wrap(|| self.inner.call(request));
        MappedFuture { wrapped, request_id, contract: self.layer.contract }
    }
}

pin_project! {
    /// Resolves to the mapped response.
    pub struct MappedFuture<F: Future, M: MapOutcome<F>> {
        #[pin]
        wrapped: M::Wrapped,
        request_id: RequestId,
        contract: &'static Contract,
    }
}

impl<F: Future, M: MapOutcome<F>> Future for MappedFuture<F, M> {
    type Output = HttpResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResult> {
        let this = self.project();
        let outcome = ready!(this.wrapped.poll(cx));
        Poll::Ready(Ok(M::map(outcome, this.contract, *this.request_id)))
    }
}
