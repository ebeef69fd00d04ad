//! Turns failures into the contract's errors: errors of the gRPC library (undecodable or oversized messages, unknown
//! methods), and panics of handlers, which tower-http catches.

use std::{
    any::Any,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{HttpResult, error_response, request_id};
use crate::{
    contract::{ApiError, Contract, Violation, v1::CommonErrorCode},
    domain::RequestId,
};

/// Marks the response of a call whose handler panicked.
#[derive(Debug, Clone, Copy)]
struct Panicked;

/// Returns the response for a panic, without the request id: tower-http passes only the payload.
/// [`NormalizeErrorsLayer`] replaces it.
pub fn response_for_panic(_payload: Box<dyn Any + Send>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(Panicked);
    response
}

/// Adds [`NormalizeErrors`].
#[derive(Debug, Clone, Copy)]
pub struct NormalizeErrorsLayer(pub &'static Contract);

impl<S> Layer<S> for NormalizeErrorsLayer {
    type Service = NormalizeErrors<S>;

    fn layer(&self, inner: S) -> NormalizeErrors<S> {
        NormalizeErrors { inner, contract: self.0 }
    }
}

/// Normalizes the errors of a service.
#[derive(Debug, Clone)]
pub struct NormalizeErrors<S> {
    inner: S,
    contract: &'static Contract,
}

impl<S, B> Service<Request<B>> for NormalizeErrors<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = NormalizeErrorsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (request_id, contract) = (request_id(&request), self.contract);
        NormalizeErrorsFuture { inner: self.inner.call(request), request_id, contract }
    }
}

pin_project! {
    /// Resolves to the normalized response.
    #[derive(Debug)]
    pub struct NormalizeErrorsFuture<F> {
        #[pin]
        inner: F,
        request_id: RequestId,
        contract: &'static Contract,
    }
}

impl<F: Future<Output = HttpResult>> Future for NormalizeErrorsFuture<F> {
    type Output = HttpResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResult> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        let request_id = *this.request_id;
        let error = if response.extensions().get::<Panicked>().is_some() {
            tracing::error!(%request_id, "handler panicked; call failed with InternalError");
            Some(ApiError::new(CommonErrorCode::InternalError, ""))
        } else {
            api_error(&response)
        };
        Poll::Ready(Ok(error.map_or(response, |error| error_response(&error, this.contract, request_id))))
    }
}

/// Returns the contract's error for a response of the gRPC library; `None` for a response that succeeded, or whose
/// error has the contract's form already.
fn api_error(response: &Response<Body>) -> Option<ApiError> {
    let status = Status::from_header_map(response.headers()).filter(|status| status.details().is_empty())?;
    match status.code() {
        Code::Unimplemented => Some(ApiError::new(CommonErrorCode::InvalidActionNotFound, status.message())),
        // Before the response has begun, these codes are about the request only.
        Code::Internal | Code::OutOfRange | Code::ResourceExhausted => {
            Some(ApiError::invalid(Violation { field: "the request", description: status.message().to_owned() }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use tonic::body::Body;
    use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
    use tower_http::catch_panic::CatchPanicLayer;

    use super::{NormalizeErrorsLayer, response_for_panic};
    use crate::contract::Contract;

    async fn call<S>(inner: S) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(crate::new_request_id());
        let contract = Contract::load().expect("the contract");
        let stack = ServiceBuilder::new()
            .layer(NormalizeErrorsLayer(contract))
            .map_response(|response: Response<_>| response.map(Body::new))
            .layer(CatchPanicLayer::custom(response_for_panic))
            .service(inner);
        let Ok(response) = stack.oneshot(request).await;
        response
    }

    fn panic_always(request: &Request<Body>) {
        assert!(request.uri().path().is_empty(), "panic of the test");
    }

    #[tokio::test]
    async fn a_panic_becomes_a_response() {
        let in_the_future = call(service_fn(|request: Request<Body>| async move {
            panic_always(&request);
            Ok(Response::new(Body::empty()))
        }));
        let in_the_call = call(service_fn(|request: Request<Body>| {
            panic_always(&request);
            std::future::ready(Ok(Response::new(Body::empty())))
        }));
        for response in [in_the_future.await, in_the_call.await] {
            assert_eq!(response.headers()["grpc-status"], "13");
            assert!(response.headers().contains_key("grpc-status-details-bin"));
        }
    }
}
