//! Answers for a handler that panicked: its caller is told, and nobody else notices.

use std::{
    any::Any,
    future::{Ready, ready},
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures_util::future::{CatchUnwind, Either, FutureExt as _};
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

/// An answer, or what a panic left.
type Outcome = Result<Answer, Box<dyn Any + Send>>;

impl<F: Future<Output = Answer>> Amend<F> for CatchPanic {
    type Watched = Either<CatchUnwind<AssertUnwindSafe<F>>, Ready<Outcome>>;

    /// A panic of what comes before the future, too, which would end the connection with all calls on it.
    fn watch(call: impl FnOnce() -> F) -> Self::Watched {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(call) => Either::Left(AssertUnwindSafe(call).catch_unwind()),
            Err(panic) => Either::Right(ready(Err(panic))),
        }
    }

    fn amend(outcome: Outcome, contract: &Contract, request_id: RequestId) -> Response<Body> {
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
    use tower::{Layer as _, Service, ServiceExt as _, service_fn};

    use super::CatchPanic;
    use crate::{contract::Contract, server::layer::AmendLayer};

    async fn call(inner: impl Service<Request<Body>, Response = Response<Body>, Error = Infallible>) -> Response<Body> {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(crate::new_request_id());
        let contract = Contract::load().expect("the contract");
        let Ok(response) = AmendLayer::<CatchPanic>::new(contract).layer(inner).oneshot(request).await;
        response
    }

    fn unforeseen(request: &Request<Body>) {
        assert!(request.uri().path().is_empty(), "nobody foresaw this");
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let later = call(service_fn(|request: Request<Body>| async move {
            unforeseen(&request);
            Ok(Response::new(Body::empty()))
        }));
        let at_once = call(service_fn(|request: Request<Body>| {
            unforeseen(&request);
            std::future::ready(Ok(Response::new(Body::empty())))
        }));
        for response in [later.await, at_once.await] {
            assert_eq!(response.headers()["grpc-status"], "13");
            assert!(response.headers().contains_key("grpc-status-details-bin"));
        }
    }
}
