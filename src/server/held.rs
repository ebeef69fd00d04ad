//! Something that is held for as long as a call lasts: until the last byte of its answer is sent, or nobody wants it any more.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};

pin_project! {
    /// A call's answer that is to come.
    #[derive(Debug)]
    pub struct HeldFuture<F, G> {
        #[pin]
        inner: F,
        guard: Option<G>,
    }
}

impl<F, G> HeldFuture<F, G> {
    pub fn new(inner: F, guard: G) -> Self {
        Self { inner, guard: Some(guard) }
    }
}

impl<F, G> Future for HeldFuture<F, G>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<Response<HeldBody<G>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        // An answer that is there already is over.
        let guard = this.guard.take().filter(|_| !response.body().is_end_stream());
        Poll::Ready(Ok(response.map(|inner| HeldBody { inner, _guard: guard })))
    }
}

pin_project! {
    /// The body of its answer.
    #[derive(Debug)]
    pub struct HeldBody<G> {
        #[pin]
        inner: Body,
        _guard: Option<G>,
    }
}

impl<G> HttpBody for HeldBody<G> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
