//! Answers for the limits further in: a call that finds no room is told so at once, and when to come back.

use http::Response;
use tonic::body::Body;
use tower::{BoxError, load_shed::error::Overloaded};

use super::{amend::Amend, refuse};
use crate::{
    contract::{Contract, Failure, v1::CommonErrorCode},
    domain::RequestId,
    server::RETRY_AFTER,
};

/// See the module.
#[derive(Debug)]
pub struct Shed;

impl<F: Future<Output = Result<Response<Body>, BoxError>>> Amend<F> for Shed {
    type Watched = F;

    fn watch(call: F) -> F {
        call
    }

    fn amend(outcome: Result<Response<Body>, BoxError>, contract: &Contract, request_id: RequestId) -> Response<Body> {
        outcome.unwrap_or_else(|error| {
            let failure = if error.is::<Overloaded>() {
                Failure::unavailable("Too many calls are being carried out; repeat this one later", RETRY_AFTER)
            } else {
                tracing::error!(%error, "the stack failed");
                Failure::new(CommonErrorCode::InternalError, "")
            };
            refuse(&failure, contract, request_id)
        })
    }
}
