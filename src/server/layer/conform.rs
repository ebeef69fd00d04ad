//! Gives the refusals of the gRPC library, which knows nothing of the contract, the contract's form: a message that can't be
//! decoded, or that says it is too large; a method that does not exist.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{Answer, refuse, request_id};
use crate::contract::{Contract, Failure, Violation, v1::CommonErrorCode};
use crate::domain::RequestId;

/// See the module.
#[derive(Debug, Clone)]
pub struct ConformLayer(Arc<Contract>);

impl ConformLayer {
    pub fn new(contract: Arc<Contract>) -> Self {
        Self(contract)
    }
}

impl<S> Layer<S> for ConformLayer {
    type Service = Conform<S>;

    fn layer(&self, inner: S) -> Conform<S> {
        Conform { inner, contract: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Conform<S> {
    inner: S,
    contract: Arc<Contract>,
}

impl<S, B> Service<Request<B>> for Conform<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request_id = request_id(&request);
        ResponseFuture { inner: self.inner.call(request), request_id, contract: Arc::clone(&self.contract) }
    }
}

/// What the contract makes of a refusal that is not in its form; nothing for one that is, and for an answer.
fn failure(response: &Response<Body>) -> Option<Failure> {
    let status = Status::from_header_map(response.headers()).filter(|status| status.details().is_empty())?;
    match status.code() {
        Code::Unimplemented => Some(Failure::new(CommonErrorCode::InvalidActionNotFound, status.message())),
        // Before an answer has begun, these can only be about what the caller sent.
        Code::Internal | Code::OutOfRange | Code::ResourceExhausted => {
            Some(Failure::invalid(Violation { field: "the request", description: status.message().to_owned() }))
        }
        _ => None,
    }
}

pin_project! {
    /// The answer, in the contract's form.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        request_id: RequestId,
        contract: Arc<Contract>,
    }
}

impl<F: Future<Output = Answer>> Future for ResponseFuture<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        let conforming = failure(&response).map(|failure| refuse(&failure, this.contract, *this.request_id));
        Poll::Ready(Ok(conforming.unwrap_or(response)))
    }
}
