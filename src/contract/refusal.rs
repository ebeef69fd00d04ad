//! A failed call as its caller reads it: what [`Failure`](super::Failure) has made of an error, read back.

use std::{fmt, time::Duration};

use prost::Message as _;
use tonic::Status;
use tonic_types::{StatusExt as _, pb};

use super::{
    Code,
    v1::{CommonErrorCode, ErrorCode, ErrorDetail, error_detail::Reason},
};
use crate::domain::ForeignText;

/// How much of each text is kept, in bytes: more than the service says.
const MAX_TEXT: usize = 2_048;

/// A call that was refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The row of the contract's table; nothing if it was not the service that refused, but what is between.
    pub error: Option<Code>,
    /// That row's code, for example `ImageNotFound`, or the name of the gRPC status.
    pub reason: String,
    /// The row's HTTP status, which the original answers with.
    pub http_status: Option<u16>,
    /// What was wrong, and what to do.
    pub message: String,
    /// The request, to ask about.
    pub request_id: Option<String>,
    /// The regions that it is about.
    pub region_ids: Vec<String>,
    /// The fields of the request that are wrong, each with what is.
    pub violations: Vec<(String, String)>,
    /// When the same call may be repeated.
    pub retry_after: Option<Duration>,
    /// All of it, as gRPC has it.
    pub status: Status,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map_or_else(|| format!("{:?}", status.code()), |info| foreign(&info.reason));
        let detail = detail(&status);
        let violations = details.bad_request().map(|bad| &bad.field_violations).into_iter().flatten();
        Self {
            error: detail.as_ref().and_then(code),
            reason,
            http_status: detail.as_ref().and_then(|detail| u16::try_from(detail.http_status).ok()),
            message: foreign(status.message()),
            request_id: detail.as_ref().map(|detail| foreign(&detail.request_id)),
            region_ids: detail.iter().flat_map(|detail| &detail.region_ids).map(|region| foreign(region)).collect(),
            violations: violations.map(|each| (foreign(&each.field), foreign(&each.description))).collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            status,
        }
    }
}

/// What a service says, or something in between that answers in its place: fit to be shown.
fn foreign(text: &str) -> String {
    ForeignText::limited(MAX_TEXT, text).into()
}

fn detail(status: &Status) -> Option<ErrorDetail> {
    let all = pb::Status::decode(status.details()).ok()?;
    let own = all.details.into_iter().find(|any| any.type_url.ends_with("/appferry.v1.ErrorDetail"))?;
    ErrorDetail::decode(&*own.value).ok()
}

fn code(detail: &ErrorDetail) -> Option<Code> {
    match detail.reason? {
        Reason::Code(code) => ErrorCode::try_from(code).ok().map(Code::Own),
        Reason::CommonCode(code) => CommonErrorCode::try_from(code).ok().map(Code::Common),
    }
}

/// As a person reads it: the code, the message, and the request to ask about.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)?;
        self.request_id.as_ref().map_or(Ok(()), |id| write!(f, " (request {id})"))
    }
}

impl std::error::Error for Refusal {}
