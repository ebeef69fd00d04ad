//! Answers for a handler that panicked: its caller is told, and nobody else notices.

use std::{any::Any, panic::AssertUnwindSafe};

use futures_util::future::{CatchUnwind, FutureExt as _};
use http::Response;
use tonic::body::Body;

use super::{Answer, amend::Amend, refuse};
use crate::{
    contract::{Contract, Failure, v1::CommonErrorCode},
    domain::RequestId,
};

/// See the module.
#[derive(Debug)]
pub struct CatchPanic;

impl<F: Future<Output = Answer>> Amend<F> for CatchPanic {
    type Watched = CatchUnwind<AssertUnwindSafe<F>>;

    fn watch(call: F) -> Self::Watched {
        AssertUnwindSafe(call).catch_unwind()
    }

    fn amend(
        outcome: Result<Answer, Box<dyn Any + Send>>,
        contract: &Contract,
        request_id: RequestId,
    ) -> Response<Body> {
        match outcome {
            Ok(Ok(response)) => response,
            Err(_) => {
                tracing::error!(%request_id, "a handler panicked");
                refuse(&Failure::new(CommonErrorCode::InternalError, ""), contract, request_id)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use tonic::body::Body;
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use super::CatchPanic;
    use crate::{contract::Contract, domain::RequestId, server::layer::AmendLayer};

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let panicking = service_fn(|request: Request<Body>| async move {
            assert!(request.uri().path().is_empty(), "nobody foresaw this");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(RequestId::generate());
        let contract = Contract::load().expect("the contract");
        let Ok(response) = AmendLayer::<CatchPanic>::new(contract).layer(panicking).oneshot(request).await;
        assert_eq!(response.headers()["grpc-status"], "13");
        assert!(response.headers().contains_key("grpc-status-details-bin"));
    }
}
