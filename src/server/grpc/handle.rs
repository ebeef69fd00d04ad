//! The steps that all handlers share: taking the permit before a handler runs, and afterwards converting and logging
//! its error.

use tonic::{Request, Response, Status};

use super::permit::Permit;
use crate::{
    contract::{ApiError, ApiErrorCode, Contract, v1::ErrorCode},
    domain::{RequestId, with_causes},
};

/// Runs a handler with the permit of its call, and turns its error into a gRPC status.
pub async fn handle<Q, T, F>(
    contract: &Contract,
    mut request: Request<Q>,
    handler: impl FnOnce(Request<Q>, Permit) -> F,
) -> Result<Response<T>, Status>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let permit = Permit::take(&mut request)?;
    let request_id = permit.request_id();
    handler(request, permit).await.map(Response::new).map_err(|error| status(&error, contract, request_id))
}

/// Returns the gRPC status of an error, and logs the error's source, which is not sent to the caller.
pub fn status(error: &ApiError, contract: &Contract, request_id: RequestId) -> Status {
    if let Some(source) = error.source() {
        let source = with_causes(source);
        if error.code() == ApiErrorCode::SynchronizeApp(ErrorCode::ServiceUnavailable) {
            tracing::warn!(error = source, "database busy or unreachable; call failed, the caller may retry");
        } else {
            tracing::error!(error = source, "database error; call failed");
        }
    }
    error.status(&contract.errors, request_id)
}
