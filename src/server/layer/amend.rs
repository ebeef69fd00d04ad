//! What some layers have in common: they let a call through, and answer in the contract's form where what comes back is not fit
//! for a caller.

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

use super::{Answer, request_id};
use crate::{contract::Contract, domain::RequestId};

/// What becomes of a call that `F` carries out.
pub trait Amend<F: Future> {
    /// The call as this layer waits for it.
    type Watched: Future;

    /// Makes it, and makes it so.
    fn watch(call: impl FnOnce() -> F) -> Self::Watched;

    /// The answer for what came back.
    fn amend(outcome: <Self::Watched as Future>::Output, contract: &Contract, request_id: RequestId) -> Response<Body>;
}

/// A layer that amends as `A` does.
#[derive(Debug)]
pub struct AmendLayer<A> {
    contract: &'static Contract,
    amends: PhantomData<fn() -> A>,
}

impl<A> AmendLayer<A> {
    pub fn new(contract: &'static Contract) -> Self {
        Self { contract, amends: PhantomData }
    }
}

impl<A> Clone for AmendLayer<A> {
    fn clone(&self) -> Self {
        Self::new(self.contract)
    }
}

impl<S, A> Layer<S> for AmendLayer<A> {
    type Service = Amended<S, A>;

    fn layer(&self, inner: S) -> Amended<S, A> {
        Amended { inner, layer: self.clone() }
    }
}

/// See [`AmendLayer`].
#[derive(Debug)]
pub struct Amended<S, A> {
    inner: S,
    layer: AmendLayer<A>,
}

impl<S: Clone, A> Clone for Amended<S, A> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, B, A> Service<Request<B>> for Amended<S, A>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    A: Amend<S::Future>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request_id = request_id(&request);
        let watched = A::watch(|| self.inner.call(request));
        ResponseFuture { watched, request_id, contract: self.layer.contract }
    }
}

pin_project! {
    /// The answer, amended.
    pub struct ResponseFuture<F: Future, A: Amend<F>> {
        #[pin]
        watched: A::Watched,
        request_id: RequestId,
        contract: &'static Contract,
    }
}

impl<F: Future, A: Amend<F>> Future for ResponseFuture<F, A> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        let outcome = ready!(this.watched.poll(cx));
        Poll::Ready(Ok(A::amend(outcome, this.contract, *this.request_id)))
    }
}
