//! Limits the size and the arrival time of request bodies: a body that is longer or slower ends with an error.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{LengthLimitError, Limited};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body, codegen::StdError};
use tower::{Layer, Service};

use super::{message::MESSAGE_PREFIX_BYTES, request_id};
use crate::{
    contract::{ApiError, Contract, Violation},
    domain::RequestId,
};

/// Adds [`BodyLimit`].
#[derive(Debug, Clone)]
pub struct BodyLimitLayer {
    max_bytes: usize,
    arrival: Duration,
    contract: &'static Contract,
}

impl BodyLimitLayer {
    /// Limits messages to `max_bytes`, and the wait for a body's bytes to `arrival` in total.
    pub fn new(max_bytes: usize, arrival: Duration, contract: &'static Contract) -> Self {
        Self { max_bytes, arrival, contract }
    }
}

impl<S> Layer<S> for BodyLimitLayer {
    type Service = BodyLimit<S>;

    fn layer(&self, inner: S) -> BodyLimit<S> {
        BodyLimit { inner, layer: self.clone() }
    }
}

/// Limits the request bodies of a service.
#[derive(Debug, Clone)]
pub struct BodyLimit<S> {
    inner: S,
    layer: BodyLimitLayer,
}

impl<S, B> Service<Request<B>> for BodyLimit<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    B: HttpBody<Data = Bytes, Error: Into<StdError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request_id = request_id(&request);
        let BodyLimitLayer { max_bytes, arrival, contract } = self.layer;
        let limited = |body| {
            let inner = Limited::new(body, max_bytes + MESSAGE_PREFIX_BYTES);
            LimitedBody { inner, max_bytes, timeout: None, arrival, request_id, contract }
        };
        let request = request.map(|body| Body::new(limited(body)));
        self.inner.call(request)
    }
}

pin_project! {
    /// Adds the time limit, and turns the errors of both limits into the contract's errors.
    struct LimitedBody<B> {
        #[pin]
        inner: Limited<B>,
        max_bytes: usize,
        // Started at the first wait: most bodies have arrived when they are read, and need no timer.
        #[pin]
        timeout: Option<Sleep>,
        arrival: Duration,
        request_id: RequestId,
        contract: &'static Contract,
    }
}

impl<B: HttpBody<Data = Bytes, Error: Into<StdError>>> HttpBody for LimitedBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        let Poll::Ready(frame) = this.inner.poll_frame(cx) else {
            if this.timeout.is_none() {
                this.timeout.set(Some(sleep(*this.arrival)));
            }
            let expired = this.timeout.as_pin_mut().map_or(Poll::Pending, |timeout| timeout.poll(cx));
            let status = |()| ApiError::timeout(*this.arrival).status(&this.contract.errors, *this.request_id);
            return expired.map(|expired| Some(Err(status(expired))));
        };
        let status = |error: StdError| match error.downcast_ref() {
            Some(LengthLimitError { .. }) => {
                let description = format!("it is larger than {} bytes", this.max_bytes);
                let error = ApiError::invalid(Violation { field: "the request", description });
                error.status(&this.contract.errors, *this.request_id)
            }
            None => Status::from_error(error),
        };
        Poll::Ready(frame.map(|frame| frame.map_err(status)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
