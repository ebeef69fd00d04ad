//! Assigns an id to every call and returns it in the `x-request-id` response header.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{Layer, Service};

use super::HttpResult;
use crate::domain::RequestId;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Adds [`WithRequestId`]. The service generates all ids itself, because they name synchronizations. tower-http's
/// layers would keep an id that the caller sends, and carry it in a header of the request, which the caller may have
/// signed.
#[derive(Debug, Clone, Copy)]
pub struct RequestIdLayer;

impl<S> Layer<S> for RequestIdLayer {
    type Service = WithRequestId<S>;

    fn layer(&self, inner: S) -> WithRequestId<S> {
        WithRequestId { inner }
    }
}

/// Assigns ids to the calls of a service.
#[derive(Debug, Clone)]
pub struct WithRequestId<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for WithRequestId<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = std::convert::Infallible>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = WithRequestIdFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = crate::new_request_id();
        request.extensions_mut().insert(id);
        WithRequestIdFuture { inner: self.inner.call(request), id }
    }
}

pin_project! {
    /// Adds the header to the response.
    #[derive(Debug)]
    pub struct WithRequestIdFuture<F> {
        #[pin]
        inner: F,
        id: RequestId,
    }
}

impl<F: Future<Output = HttpResult>> Future for WithRequestIdFuture<F> {
    type Output = HttpResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResult> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(cx));
        if let Ok(mut id) = HeaderValue::try_from(this.id.to_string()) {
            // The id is not a secret, but it never repeats. As a never-indexed literal (RFC 7541, section 6.2.3), it
            // does not evict repeated headers from the connection's table.
            id.set_sensitive(true);
            response.headers_mut().insert(X_REQUEST_ID, id);
        }
        Poll::Ready(Ok(response))
    }
}
