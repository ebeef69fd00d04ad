//! A failed call on its way out: the one place where an error becomes a `google.rpc.Status`.

use std::{fmt::Display, time::Duration};

use prost::Message as _;
use tonic::{Status, metadata::MetadataMap};
use tonic_types::pb;

use super::{
    Code, ErrorRows,
    v1::{self, CommonErrorCode, ErrorCode},
};
use crate::domain::{ForeignText, RequestId};

/// The `domain` of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "appferry";

/// How much of the regions' names a refusal repeats, in bytes.
const MAX_REGIONS_BYTES: usize = 1_024;

/// A field of a request and what is wrong with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's name, as the proto spells it.
    pub field: &'static str,
    /// What is wrong, with the value.
    pub description: String,
}

/// Why a call failed, in the contract's terms.
#[derive(Debug, Clone)]
pub struct Failure {
    code: Code,
    cause: ForeignText,
    regions: Vec<String>,
    violations: Vec<(&'static str, ForeignText)>,
    retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of a code, with what is known about this case.
    #[must_use]
    pub fn new(code: impl Into<Code>, cause: impl Display) -> Self {
        Self {
            code: code.into(),
            cause: ForeignText::message(cause),
            regions: Vec::new(),
            violations: Vec::new(),
            retry_after: None,
        }
    }

    /// `InvalidParams` for one field.
    #[must_use]
    pub fn invalid(violation: Violation) -> Self {
        let cause = format!("{}: {}", violation.field, violation.description);
        let violation = (violation.field, ForeignText::new(violation.description));
        Self { violations: vec![violation], ..Self::new(ErrorCode::InvalidParams, cause) }
    }

    /// `ServiceUnavailable`: the same call may be repeated after `retry_after`.
    #[must_use]
    pub fn unavailable(cause: impl Display, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(ErrorCode::ServiceUnavailable, cause) }
    }

    /// `Throttling`: the same call may be made again after `retry_after`.
    #[must_use]
    pub fn throttled(retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(CommonErrorCode::Throttling, "") }
    }

    /// `RequestTimeout`: the deadline passed.
    #[must_use]
    pub fn timeout(deadline: Duration) -> Self {
        Self::new(CommonErrorCode::RequestTimeout, format!("{deadline:?}"))
    }

    /// Names the regions that it is about; the first of them, where all would be more than a reply's headers can hold.
    #[must_use]
    pub fn in_regions(self, regions: impl IntoIterator<Item = impl ToString>) -> Self {
        let mut room = MAX_REGIONS_BYTES;
        let fits = |region: &String| {
            room = room.saturating_sub(region.len());
            room > 0
        };
        Self { regions: regions.into_iter().map(|r| r.to_string()).take_while(fits).collect(), ..self }
    }

    /// Whether it is `Throttling`.
    #[must_use]
    pub fn is_throttling(&self) -> bool {
        self.code == Code::Common(CommonErrorCode::Throttling)
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The contract's `ErrorDetail` of it.
    #[must_use]
    pub fn detail(&self, rows: &ErrorRows, request_id: RequestId) -> v1::ErrorDetail {
        let row = rows.row(self.code);
        v1::ErrorDetail {
            reason: Some(match self.code {
                Code::Own(code) => v1::error_detail::Reason::Code(code.into()),
                Code::Common(code) => v1::error_detail::Reason::CommonCode(code.into()),
            }),
            http_status: row.http_status,
            message: row.message(&self.cause),
            request_id: request_id.to_string(),
            region_ids: self.regions.clone(),
        }
    }

    /// The reply, as tonic sends it.
    #[must_use]
    pub fn status(&self, rows: &ErrorRows, request_id: RequestId) -> Status {
        let (code, status) = (rows.row(self.code).grpc_status, self.rpc_status(rows, request_id));
        let details = status.encode_to_vec().into();
        Status::with_details_and_metadata(code, status.message, details, MetadataMap::new())
    }

    /// The reply: `google.rpc.Status` with every detail that the contract promises.
    #[must_use]
    pub fn rpc_status(&self, rows: &ErrorRows, request_id: RequestId) -> pb::Status {
        let row = rows.row(self.code);
        let detail = self.detail(rows, request_id);
        let message = detail.message.clone();
        let mut details = vec![
            any(
                "google.rpc.ErrorInfo",
                &pb::ErrorInfo {
                    reason: row.code.clone(),
                    domain: DOMAIN.to_owned(),
                    metadata: [("http_status".to_owned(), row.http_status.to_string())].into(),
                },
            ),
            any(
                "google.rpc.RequestInfo",
                &pb::RequestInfo { request_id: request_id.to_string(), serving_data: String::new() },
            ),
            any("appferry.v1.ErrorDetail", &detail),
        ];
        if !self.violations.is_empty() {
            let field_violations = self.violations.iter().map(|(field, description)| pb::bad_request::FieldViolation {
                field: (*field).to_owned(),
                description: description.to_string(),
                ..Default::default()
            });
            details
                .push(any("google.rpc.BadRequest", &pb::BadRequest { field_violations: field_violations.collect() }));
        }
        if let Some(retry_after) = self.retry_after {
            details.push(any(
                "google.rpc.RetryInfo",
                &pb::RetryInfo { retry_delay: prost_types::Duration::try_from(retry_after).ok() },
            ));
        }
        pb::Status { code: row.grpc_status as i32, message, details }
    }
}

/// A message with its type.
pub fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}
