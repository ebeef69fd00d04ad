//! The error of a failed call, and its conversion to `google.rpc.Status`. Only this module performs the conversion.

use std::{error::Error, fmt::Display, sync::Arc, time::Duration};

use prost::Message as _;
use tonic::{Status, metadata::MetadataMap};
use tonic_types::pb;

use super::{
    ApiErrorCode, ErrorTable,
    v1::{self, CommonErrorCode, ErrorCode},
};
use crate::domain::{ForeignText, RequestId};

/// The `domain` of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "appferry";

/// Longest list of region names in a response, in bytes. Errors are sent in headers, whose size is limited.
const MAX_REGIONS_BYTES: usize = 1_024;

/// A field of a request with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's name in the proto.
    pub field: &'static str,
    /// The problem, including the invalid value.
    pub description: String,
}

/// Why a call failed: an error code of the contract and the details of this failure.
#[derive(Debug, Clone)]
pub struct ApiError {
    code: ApiErrorCode,
    cause: ForeignText,
    // Boxed slices keep `Result`s with this error small.
    regions: Box<[String]>,
    violations: Box<[(&'static str, ForeignText)]>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// Creates an error. `cause` becomes part of the message.
    #[must_use]
    pub fn new(code: impl Into<ApiErrorCode>, cause: impl Display) -> Self {
        Self {
            code: code.into(),
            cause: ForeignText::message(cause),
            regions: Box::default(),
            violations: Box::default(),
            retry_after: None,
            source: None,
        }
    }

    /// Creates `InvalidParams` for one field.
    #[must_use]
    pub fn invalid(violation: Violation) -> Self {
        let cause = format!("{}: {}", violation.field, violation.description);
        let violation = (violation.field, ForeignText::new(violation.description));
        Self { violations: Box::from([violation]), ..Self::new(ErrorCode::InvalidParams, cause) }
    }

    /// Creates `ServiceUnavailable`: the call may be repeated after `retry_after`.
    #[must_use]
    pub fn unavailable(cause: impl Display, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(ErrorCode::ServiceUnavailable, cause) }
    }

    /// Creates `Throttling`: the call may be repeated after `retry_after`.
    #[must_use]
    pub fn throttled(retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(CommonErrorCode::Throttling, "") }
    }

    /// Creates `RequestTimeout` for a call that took longer than `deadline`.
    #[must_use]
    pub fn timeout(deadline: Duration) -> Self {
        Self::new(CommonErrorCode::RequestTimeout, format!("{deadline:?}"))
    }

    /// Adds the regions that the error is about, or only the first of them if the headers have no room for all names.
    #[must_use]
    pub fn in_regions(self, regions: impl IntoIterator<Item = impl ToString>) -> Self {
        let mut remaining = MAX_REGIONS_BYTES;
        let fits = |region: &String| {
            remaining = remaining.saturating_sub(region.len());
            remaining > 0
        };
        Self { regions: regions.into_iter().map(|r| r.to_string()).take_while(fits).collect(), ..self }
    }

    /// Adds the error that caused this one. It is logged, but not sent to the caller.
    #[must_use]
    pub fn with_source(self, source: Arc<dyn Error + Send + Sync>) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Returns the error that caused this one, if one was added. It is not sent to the caller.
    #[must_use]
    pub fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }

    /// Returns the error code.
    #[must_use]
    pub fn code(&self) -> ApiErrorCode {
        self.code
    }

    /// Returns the contract's `ErrorDetail`.
    #[must_use]
    pub fn detail(&self, table: &ErrorTable, request_id: RequestId) -> v1::ErrorDetail {
        let row = table.row(self.code);
        v1::ErrorDetail {
            reason: Some(match self.code {
                ApiErrorCode::SynchronizeApp(code) => v1::error_detail::Reason::Code(code.into()),
                ApiErrorCode::Common(code) => v1::error_detail::Reason::CommonCode(code.into()),
            }),
            http_status: row.http_status,
            message: row.message(&self.cause),
            request_id: request_id.to_string(),
            region_ids: self.regions.to_vec(),
        }
    }

    /// Returns the error as a tonic status.
    #[must_use]
    pub fn status(&self, table: &ErrorTable, request_id: RequestId) -> Status {
        let (code, status) = (table.row(self.code).grpc_status, self.rpc_status(table, request_id));
        let details = status.encode_to_vec().into();
        Status::with_details_and_metadata(code, status.message, details, MetadataMap::new())
    }

    /// Returns the error as a `google.rpc.Status` with all details that the contract promises.
    #[must_use]
    pub fn rpc_status(&self, table: &ErrorTable, request_id: RequestId) -> pb::Status {
        let row = table.row(self.code);
        let detail = self.detail(table, request_id);
        let message = detail.message.clone();
        let mut details = vec![
            pack_any(
                "google.rpc.ErrorInfo",
                &pb::ErrorInfo {
                    reason: row.code.clone(),
                    domain: DOMAIN.to_owned(),
                    metadata: [("http_status".to_owned(), row.http_status.to_string())].into(),
                },
            ),
            pack_any(
                "google.rpc.RequestInfo",
                &pb::RequestInfo { request_id: request_id.to_string(), serving_data: String::new() },
            ),
            pack_any("appferry.v1.ErrorDetail", &detail),
        ];
        if !self.violations.is_empty() {
            let field_violations = self.violations.iter().map(|(field, description)| pb::bad_request::FieldViolation {
                field: (*field).to_owned(),
                description: description.to_string(),
                ..Default::default()
            });
            details.push(pack_any(
                "google.rpc.BadRequest",
                &pb::BadRequest { field_violations: field_violations.collect() },
            ));
        }
        if let Some(retry_after) = self.retry_after {
            details.push(pack_any(
                "google.rpc.RetryInfo",
                &pb::RetryInfo { retry_delay: prost_types::Duration::try_from(retry_after).ok() },
            ));
        }
        pb::Status { code: row.grpc_status as i32, message, details }
    }
}

/// Packs a message and its type name into an `Any`.
pub fn pack_any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}
