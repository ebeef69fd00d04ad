//! Turns the response of a method into an HTTP response with the original's JSON, and errors into its error format.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::{Map, Value, json};
use tonic::{Status, body::Body};

use super::{grpc_bridge, results::ResultEncoder};
use crate::contract::ApiErrorResponse;

/// Base of the links to the original's documentation of error codes.
const TROUBLESHOOTING: &str = "https://api.aliyun.com/troubleshoot";

/// Creates the HTTP response. `host` is the host that the request was addressed to.
pub async fn http_response(
    grpc_response: Response<Body>,
    encoder: Option<ResultEncoder>,
    host: &str,
) -> Response<Body> {
    let id = grpc_response.headers().get("x-request-id").cloned();
    let request_id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let message = grpc_bridge::response_message(grpc_response).await;
    let (http_status, mut fields, retry_after) = match (message, encoder) {
        (Ok(message), Some(encode)) => match encode(&message) {
            Ok(fields) => (StatusCode::OK, fields, None),
            Err(error) => error_fields(Status::internal(error.to_string()), host),
        },
        (Ok(_), None) => error_fields(Status::internal("the response has no JSON form"), host),
        (Err(status), _) => error_fields(status, host),
    };
    // SynchronizeApp's own RequestId, which is the id of the synchronization, has precedence.
    fields.entry("RequestId").or_insert_with(|| json!(request_id));
    let mut response = Response::new(Body::new(http_body_util::Full::from(Value::Object(fields).to_string())));
    *response.status_mut() = http_status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json;charset=utf-8"));
    if let Some(id) = id {
        headers.insert("x-acs-request-id", id);
    }
    if let Some(delay) = retry_after {
        headers.insert("retry-after", HeaderValue::from(millis(delay).div_ceil(1_000)));
        if http_status == StatusCode::TOO_MANY_REQUESTS {
            // The original's clients read the delay of throttled requests from here, in milliseconds.
            headers.insert("x-acs-retry-after", HeaderValue::from(millis(delay)));
        }
    }
    response
}

fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the HTTP status, the fields and the retry delay of an error.
fn error_fields(status: Status, host: &str) -> (StatusCode, Map<String, Value>, Option<Duration>) {
    let error = ApiErrorResponse::from(status);
    let http_status = error.http_status.and_then(|code| StatusCode::from_u16(code).ok());
    // Names of gRPC statuses are unknown to the original's clients.
    let code = if error.error.is_some() { error.reason } else { "InternalError".to_owned() };
    let message = error.violations.iter().fold(error.message, |message, (field, _)| {
        message.replacen(&format!("{field}: "), &format!("{}: ", parameter_name(field)), 1)
    });
    let fields = json!({
        "Code": code,
        "Message": message,
        "HostId": host,
        "Recommend": format!("{TROUBLESHOOTING}?q={code}&product=EhpcInstant"),
    });
    let Value::Object(fields) = fields else { return (StatusCode::INTERNAL_SERVER_ERROR, Map::new(), None) };
    (http_status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), fields, error.retry_after)
}

/// Returns the parameter of a field of the contract: `AppId` for `app_id`.
fn parameter_name(field: &str) -> String {
    match field {
        "names" => "ImageNames".to_owned(),
        "skip" => "PageNumber".to_owned(),
        field if field.contains(' ') => field.to_owned(),
        field => field.split('.').map(camel_case).collect::<Vec<_>>().join("."),
    }
}

fn camel_case(name: &str) -> String {
    let capitalized = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
    };
    name.split('_').map(|word| if word == "vm" { "VM".to_owned() } else { capitalized(word) }).collect()
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tonic::body::Body;

    use super::{http_response, parameter_name};
    use crate::contract::{
        ApiError, ApiErrorCode, Contract,
        v1::{CommonErrorCode, ErrorCode},
    };

    #[tokio::test]
    async fn every_error_code_has_the_originals_form() {
        let contract = Contract::load().expect("the contract");
        let own = (1..).map_while(|code| ErrorCode::try_from(code).ok()).map(ApiErrorCode::from);
        let common = (1..).map_while(|code| CommonErrorCode::try_from(code).ok()).map(ApiErrorCode::from);
        let mut codes = 0;
        for code in own.chain(common) {
            let id = crate::new_request_id();
            let row = contract.errors.row(code);
            let mut grpc_response: Response<Body> =
                ApiError::new(code, "because").status(&contract.errors, id).into_http();
            grpc_response.headers_mut().insert("x-request-id", id.to_string().parse().expect("a value"));
            let response = http_response(grpc_response, None, "host:1").await;
            assert_eq!(i32::from(response.status().as_u16()), row.http_status, "{code:?}");
            let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let message = row.message("because");
            let id = id.to_string();
            for (key, value) in [("Code", &row.code), ("Message", &message), ("RequestId", &id)] {
                assert_eq!(body[key], value.as_str(), "{code:?}");
            }
            assert_eq!(body["HostId"], "host:1");
            assert!(body["Recommend"].is_string());
            codes += 1;
        }
        assert_eq!(codes, 22, "those of both enums");
    }

    #[test]
    fn fields_are_named_as_parameters() {
        for (field, name) in [
            ("app_id", "AppId"),
            ("target_region_ids", "TargetRegionIds"),
            ("vm_image_spec.image_id", "VMImageSpec.ImageId"),
            ("container_image_spec.registry_url", "ContainerImageSpec.RegistryUrl"),
            ("the request", "the request"),
        ] {
            assert_eq!(parameter_name(field), name);
        }
    }
}
