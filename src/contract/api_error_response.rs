//! The error of a failed call as the caller receives it: the reverse of [`ApiError`](super::ApiError).

use std::{fmt, time::Duration};

use prost::Message as _;
use tonic::Status;
use tonic_types::{StatusExt as _, pb};

use super::{
    ApiErrorCode,
    v1::{CommonErrorCode, ErrorCode, ErrorDetail, error_detail::Reason},
};
use crate::domain::ForeignText;

/// Longest text that is kept, in bytes. The service sends shorter texts.
const MAX_TEXT: usize = 2_048;

/// An error response.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ApiErrorResponse {
    /// The error code; `None` if a proxy or the transport created the response instead of the service.
    pub error: Option<ApiErrorCode>,
    /// Name of the error code, for example `ImageNotFound`, or of the gRPC status if there is no error code.
    pub reason: String,
    /// HTTP status of the error code in the original API.
    pub http_status: Option<u16>,
    /// The cause, and the next step.
    pub message: String,
    pub request_id: Option<String>,
    /// The regions that the error is about.
    pub region_ids: Vec<String>,
    /// Invalid fields of the request, each with a description.
    pub violations: Vec<(String, String)>,
    /// Delay after which the call may be repeated.
    pub retry_after: Option<Duration>,
    /// The gRPC status.
    pub status: Status,
}

impl From<Status> for ApiErrorResponse {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason =
            details.error_info().map_or_else(|| format!("{:?}", status.code()), |info| displayable(&info.reason));
        let detail = detail(&status);
        let violations = details.bad_request().map(|bad| &bad.field_violations).into_iter().flatten();
        Self {
            error: detail.as_ref().and_then(code),
            reason,
            http_status: detail.as_ref().and_then(|detail| u16::try_from(detail.http_status).ok()),
            message: displayable(status.message()),
            request_id: detail.as_ref().map(|detail| displayable(&detail.request_id)),
            region_ids: detail.iter().flat_map(|detail| &detail.region_ids).map(|region| displayable(region)).collect(),
            violations: violations.map(|each| (displayable(&each.field), displayable(&each.description))).collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            status,
        }
    }
}

/// Makes a text of the service, or of a proxy in between, fit for display.
fn displayable(text: &str) -> String {
    ForeignText::limited(MAX_TEXT, text).into()
}

fn detail(status: &Status) -> Option<ErrorDetail> {
    let all = pb::Status::decode(status.details()).ok()?;
    let detail = all.details.into_iter().find(|any| any.type_url.ends_with("/appferry.v1.ErrorDetail"))?;
    ErrorDetail::decode(&*detail.value).ok()
}

fn code(detail: &ErrorDetail) -> Option<ApiErrorCode> {
    match detail.reason? {
        Reason::Code(code) => ErrorCode::try_from(code).ok().map(ApiErrorCode::SynchronizeApp),
        Reason::CommonCode(code) => CommonErrorCode::try_from(code).ok().map(ApiErrorCode::Common),
    }
}

/// Shows the code, the message, and the request id.
impl fmt::Display for ApiErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)?;
        self.request_id.as_ref().map_or(Ok(()), |id| write!(f, " (request {id})"))
    }
}

impl std::error::Error for ApiErrorResponse {}
