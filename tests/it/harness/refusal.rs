//! Decodes the errors of failed calls as a caller does.

use appferry::contract::{
    ApiErrorCode,
    v1::{CommonErrorCode, ErrorCode, ErrorDetail, error_detail::Reason},
};
use prost::Message as _;
use tonic::Status;
use tonic_types::{StatusExt as _, pb};

/// Everything that the contract specifies about a failed call.
#[derive(Debug)]
pub struct Refusal {
    pub code: tonic::Code,
    /// The field `reason` of `google.rpc.ErrorInfo`.
    pub reason: String,
    pub message: String,
    pub detail: ErrorDetail,
    /// Retry delay in seconds.
    pub retry_after: Option<f64>,
    /// The fields that `google.rpc.BadRequest` names.
    pub fields: Vec<String>,
}

/// Decodes an error, and checks that all its details are present and consistent, as in every error.
pub fn read(status: &Status) -> Refusal {
    let outer = pb::Status::decode(status.details()).expect("the details are a google.rpc.Status");
    assert_eq!((outer.code, outer.message.as_str()), (status.code() as i32, status.message()), "{status:?}");
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "appferry");
    let request = status.get_details_request_info().expect("a RequestInfo").request_id;
    let detail = outer.details.iter().find(|any| any.type_url == "type.googleapis.com/appferry.v1.ErrorDetail");
    let detail = ErrorDetail::decode(&*detail.expect("an ErrorDetail").value).expect("it decodes");
    assert_eq!(detail.message, status.message());
    assert_eq!(info.metadata["http_status"], detail.http_status.to_string());
    assert_eq!(detail.request_id, request);
    assert!(uuid::Uuid::try_parse(&request).is_ok() && request == request.to_uppercase(), "{request:?}");
    if let Some(header) = status.metadata().get("x-request-id") {
        assert_eq!(header.to_str().expect("text"), request);
    } else {
        panic!("no x-request-id in {status:?}");
    }
    Refusal {
        code: status.code(),
        reason: info.reason,
        message: status.message().to_owned(),
        detail,
        retry_after: status.get_details_retry_info().and_then(|r| r.retry_delay).map(|d| d.as_secs_f64()),
        fields: status
            .get_details_bad_request()
            .map(|b| b.field_violations.into_iter().map(|v| v.field).collect())
            .unwrap_or_default(),
    }
}

impl Refusal {
    /// Asserts that the error has this code, reason and HTTP status.
    pub fn is(&self, code: tonic::Code, reason: &str, http_status: i32) -> &Self {
        assert_eq!((self.code, self.reason.as_str(), self.detail.http_status), (code, reason, http_status), "{self:?}");
        self
    }

    /// Asserts that the error is `InvalidParams` for one field, and that its message contains the field's name and
    /// every text in `says`.
    pub fn is_invalid(&self, field: &str, says: &[&str]) {
        self.is(tonic::Code::InvalidArgument, "InvalidParams", 403);
        assert_eq!(self.fields, [field], "{self:?}");
        for text in says.iter().chain(&[field]) {
            assert!(self.message.contains(text), "{:?} does not say {text:?}", self.message);
        }
    }
}

/// Returns the API error code that an error detail contains.
pub fn code(detail: &ErrorDetail) -> ApiErrorCode {
    match detail.reason.expect("a reason") {
        Reason::Code(code) => ErrorCode::try_from(code).expect("a code").into(),
        Reason::CommonCode(code) => CommonErrorCode::try_from(code).expect("a code").into(),
    }
}
