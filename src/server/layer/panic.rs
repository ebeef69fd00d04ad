//! Answers for a handler that panicked: its caller is told, and nobody else notices.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::future::{CatchUnwind, FutureExt as _};
use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Answer, refuse, request_id};
use crate::{
    contract::{Contract, Failure, v1::CommonErrorCode},
    domain::RequestId,
};

/// See the module.
#[derive(Debug, Clone)]
pub struct PanicLayer(Arc<Contract>);

impl PanicLayer {
    pub fn new(contract: Arc<Contract>) -> Self {
        Self(contract)
    }
}

impl<S> Layer<S> for PanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> CatchPanic<S> {
        CatchPanic { inner, contract: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct CatchPanic<S> {
    inner: S,
    contract: Arc<Contract>,
}

impl<S, B> Service<Request<B>> for CatchPanic<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = std::convert::Infallible>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request_id = request_id(&request);
        let inner = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        ResponseFuture { inner, request_id, contract: Arc::clone(&self.contract) }
    }
}

pin_project! {
    /// The answer, or one for it.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: CatchUnwind<AssertUnwindSafe<F>>,
        request_id: RequestId,
        contract: Arc<Contract>,
    }
}

impl<F: Future<Output = Answer>> Future for ResponseFuture<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        Poll::Ready(ready!(this.inner.poll(cx)).unwrap_or_else(|_| {
            tracing::error!(request_id = %this.request_id, "a handler panicked");
            let failure = Failure::new(CommonErrorCode::InternalError, "");
            Ok(refuse(&failure, this.contract, *this.request_id))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use http::{Request, Response};
    use tonic::body::Body;
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use super::PanicLayer;
    use crate::{contract::Contract, domain::RequestId};

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let panicking = service_fn(|request: Request<Body>| async move {
            assert!(request.uri().path().is_empty(), "nobody foresaw this");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(RequestId::generate());
        let contract = Arc::new(Contract::load().expect("the contract"));
        let Ok(response) = PanicLayer::new(contract).layer(panicking).oneshot(request).await;
        assert_eq!(response.headers()["grpc-status"], "13");
        assert!(response.headers().contains_key("grpc-status-details-bin"));
    }
}
