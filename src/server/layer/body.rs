//! Bounds what a caller may send, and how long that may take: the body ends with an error as soon as it is longer than a message may be,
//! or has not come in time.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body, codegen::StdError};
use tower::{Layer, Service};

use super::{message::PREFIX, request_id};
use crate::contract::{Contract, Failure, Violation};
use crate::domain::RequestId;

/// See the module.
#[derive(Debug, Clone)]
pub struct LimitBodyLayer {
    most: usize,
    arrival: Duration,
    contract: &'static Contract,
}

impl LimitBodyLayer {
    /// Bodies are of `most` bytes at most, and are there after `arrival`.
    pub fn new(most: usize, arrival: Duration, contract: &'static Contract) -> Self {
        Self { most, arrival, contract }
    }
}

impl<S> Layer<S> for LimitBodyLayer {
    type Service = LimitBody<S>;

    fn layer(&self, inner: S) -> LimitBody<S> {
        LimitBody { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct LimitBody<S> {
    inner: S,
    layer: LimitBodyLayer,
}

impl<S, B> Service<Request<B>> for LimitBody<S>
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
        let LimitBodyLayer { most, arrival, contract } = self.layer;
        let limited =
            |inner| LimitedBody { inner, left: most + PREFIX, most, late: None, arrival, request_id, contract };
        let request = request.map(|inner| Body::new(limited(inner)));
        self.inner.call(request)
    }
}

pin_project! {
    struct LimitedBody<B> {
        #[pin]
        inner: B,
        left: usize,
        most: usize,
        // When it is late. Most bodies are there when they are asked for, and need no timer.
        #[pin]
        late: Option<Sleep>,
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
            if this.late.is_none() {
                this.late.set(Some(sleep(*this.arrival)));
            }
            let late = this.late.as_pin_mut().map_or(Poll::Pending, |late| late.poll(cx));
            let failure = |()| Failure::timeout(*this.arrival).status(&this.contract.errors, *this.request_id);
            return late.map(|late| Some(Err(failure(late))));
        };
        let frame = frame.map(|frame| frame.map_err(|error| Status::from_error(error.into())));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match this.left.checked_sub(data.remaining()) {
                Some(left) => *this.left = left,
                None => {
                    let description = format!("it is larger than {} bytes", this.most);
                    let failure = Failure::invalid(Violation { field: "the request", description });
                    return Poll::Ready(Some(Err(failure.status(&this.contract.errors, *this.request_id))));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
