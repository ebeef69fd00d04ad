//! Gives the refusals of the gRPC library, which knows nothing of the contract, the contract's form: a message that can't be
//! decoded, or that says it is too large; a method that does not exist.

use http::Response;
use tonic::{Code, Status, body::Body};

use super::{Answer, amend::Amend, refuse};
use crate::{
    contract::{Contract, Failure, Violation, v1::CommonErrorCode},
    domain::RequestId,
};

/// See the module.
#[derive(Debug)]
pub struct Conform;

impl<F: Future<Output = Answer>> Amend<F> for Conform {
    type Watched = F;

    fn watch(call: impl FnOnce() -> F) -> F {
        call()
    }

    fn amend(answer: Answer, contract: &Contract, request_id: RequestId) -> Response<Body> {
        let Ok(response) = answer;
        failure(&response).map_or(response, |failure| refuse(&failure, contract, request_id))
    }
}

/// What the contract makes of a refusal that is not in its form; nothing for one that is, and for an answer.
fn failure(response: &Response<Body>) -> Option<Failure> {
    let status = Status::from_header_map(response.headers()).filter(|status| status.details().is_empty())?;
    match status.code() {
        Code::Unimplemented => Some(Failure::new(CommonErrorCode::InvalidActionNotFound, status.message())),
        // Before an answer has begun, these can only be about what the caller sent.
        Code::Internal | Code::OutOfRange | Code::ResourceExhausted => {
            Some(Failure::invalid(Violation { field: "the request", description: status.message().to_owned() }))
        }
        _ => None,
    }
}
