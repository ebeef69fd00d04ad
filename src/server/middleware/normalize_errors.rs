//! Gives errors of the gRPC library the contract's form: undecodable or oversized messages, and unknown methods.

use http::Response;
use tonic::{Code, Status, body::Body};

use super::{HttpResult, error_response, map_outcome::MapOutcome};
use crate::{
    contract::{ApiError, Contract, Violation, v1::CommonErrorCode},
    domain::RequestId,
};

/// The mapping of this module.
#[derive(Debug)]
pub struct NormalizeErrors;

impl<F: Future<Output = HttpResult>> MapOutcome<F> for NormalizeErrors {
    type Wrapped = F;

    fn wrap(call: impl FnOnce() -> F) -> F {
        call()
    }

    fn map(outcome: HttpResult, contract: &Contract, request_id: RequestId) -> Response<Body> {
        let Ok(response) = outcome;
        api_error(&response).map_or(response, |error| error_response(&error, contract, request_id))
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
