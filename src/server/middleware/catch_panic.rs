//! Answers the call of a handler that panicked with `InternalError`; other calls of the connection are not affected.

use std::{
    any::Any,
    future::{Ready, ready},
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures_util::future::{CatchUnwind, Either, FutureExt as _};
use http::Response;
use tonic::body::Body;

use super::{HttpResult, error_response, map_outcome::MapOutcome};
use crate::{
    contract::{ApiError, Contract, v1::CommonErrorCode},
    domain::RequestId,
};

/// The mapping of this module. tower-http's layer of the same name has no access to the request id, which the response
/// has to carry.
#[derive(Debug)]
pub struct CatchPanic;

/// A response, or the payload of a panic.
type Outcome = Result<HttpResult, Box<dyn Any + Send>>;

impl<F: Future<Output = HttpResult>> MapOutcome<F> for CatchPanic {
    type Wrapped = Either<CatchUnwind<AssertUnwindSafe<F>>, Ready<Outcome>>;

    /// Also catches panics of the call that creates the future: they would end the connection and all of its calls.
    fn wrap(call: impl FnOnce() -> F) -> Self::Wrapped {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(call) => Either::Left(AssertUnwindSafe(call).catch_unwind()),
            Err(panic) => Either::Right(ready(Err(panic))),
        }
    }

    fn map(outcome: Outcome, contract: &Contract, request_id: RequestId) -> Response<Body> {
        match outcome {
            Ok(Ok(response)) => response,
            Err(_) => {
                tracing::error!(%request_id, "handler panicked; call failed with InternalError");
                error_response(&ApiError::new(CommonErrorCode::InternalError, ""), contract, request_id)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use tonic::body::Body;
    use tower::{Layer as _, Service, ServiceExt as _, service_fn};

    use super::CatchPanic;
    use crate::{contract::Contract, server::middleware::MapOutcomeLayer};

    async fn call(inner: impl Service<Request<Body>, Response = Response<Body>, Error = Infallible>) -> Response<Body> {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(crate::new_request_id());
        let contract = Contract::load().expect("the contract");
        let Ok(response) = MapOutcomeLayer::<CatchPanic>::new(contract).layer(inner).oneshot(request).await;
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
