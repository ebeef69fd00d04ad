//! What is answered: what a method of the contract answers, in the original's JSON.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::{Map, Value, json};
use tonic::{Status, body::Body};

use super::actions::Answer;
use crate::{contract::Refusal, server::door};

/// Where the original tells more about a code.
const TROUBLESHOOTING: &str = "https://api.aliyun.com/troubleshoot";

/// Makes an answer of a method's.
pub async fn reply(inner: Response<Body>, answer: Option<Answer>, host: &str) -> Response<Body> {
    let id = inner.headers().get("x-request-id").cloned();
    let request_id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let (http_status, mut fields, retry_after) = match (door::answer(inner).await, answer) {
        (Ok(message), Some(answer)) => match answer(&message) {
            Ok(fields) => (StatusCode::OK, fields, None),
            Err(error) => failed(Status::internal(error.to_string()), host),
        },
        (Ok(_), None) => failed(Status::internal("nobody knows how to answer"), host),
        (Err(status), _) => failed(status, host),
    };
    // That of a synchronization goes before that of the call.
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
            // By which the original's clients know that they are throttled, in milliseconds.
            headers.insert("x-acs-retry-after", HeaderValue::from(millis(delay)));
        }
    }
    response
}

fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

/// A refusal: its HTTP status, what is told, and after how long it may be repeated.
fn failed(status: Status, host: &str) -> (StatusCode, Map<String, Value>, Option<Duration>) {
    let refusal = Refusal::from(status);
    let http_status = refusal.http_status.and_then(|code| StatusCode::from_u16(code).ok());
    // What is no row of the table is nothing that the original's clients know.
    let code = if refusal.error.is_some() { refusal.reason } else { "InternalError".to_owned() };
    let message = refusal.violations.iter().fold(refusal.message, |message, (field, _)| {
        message.replacen(&format!("{field}: "), &format!("{}: ", parameter(field)), 1)
    });
    let fields = json!({
        "Code": code,
        "Message": message,
        "HostId": host,
        "Recommend": format!("{TROUBLESHOOTING}?q={code}&product=EhpcInstant"),
    });
    let Value::Object(fields) = fields else { return (StatusCode::INTERNAL_SERVER_ERROR, Map::new(), None) };
    (http_status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), fields, refusal.retry_after)
}

/// The name of a parameter, of that of the contract's field: `AppId` of `app_id`.
fn parameter(field: &str) -> String {
    match field {
        "names" => "ImageNames".to_owned(),
        "skip" => "PageNumber".to_owned(),
        field if field.contains(' ') => field.to_owned(),
        field => field.split('.').map(capitalized).collect::<Vec<_>>().join("."),
    }
}

fn capitalized(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
    };
    name.split('_').map(|part| if part == "vm" { "VM".to_owned() } else { word(part) }).collect()
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tonic::body::Body;

    use super::{parameter, reply};
    use crate::contract::{
        Code, Contract, Failure,
        v1::{CommonErrorCode, ErrorCode},
    };

    #[tokio::test]
    async fn every_row_of_the_tables_is_told_as_the_original_would() {
        let contract = Contract::load().expect("the contract");
        let own = (1..).map_while(|code| ErrorCode::try_from(code).ok()).map(Code::from);
        let common = (1..).map_while(|code| CommonErrorCode::try_from(code).ok()).map(Code::from);
        let mut told = 0;
        for code in own.chain(common) {
            let id = crate::new_request_id();
            let row = contract.errors.row(code);
            let mut inner: Response<Body> = Failure::new(code, "because").status(&contract.errors, id).into_http();
            inner.headers_mut().insert("x-request-id", id.to_string().parse().expect("a value"));
            let answer = reply(inner, None, "host:1").await;
            assert_eq!(i32::from(answer.status().as_u16()), row.http_status, "{code:?}");
            let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let message = row.message("because");
            let id = id.to_string();
            for (key, value) in [("Code", &row.code), ("Message", &message), ("RequestId", &id)] {
                assert_eq!(body[key], value.as_str(), "{code:?}");
            }
            assert_eq!(body["HostId"], "host:1");
            assert!(body["Recommend"].is_string());
            told += 1;
        }
        assert_eq!(told, 22, "eight of its own, and the others");
    }

    #[test]
    fn fields_have_the_names_of_parameters() {
        for (field, name) in [
            ("app_id", "AppId"),
            ("target_region_ids", "TargetRegionIds"),
            ("vm_image_spec.image_id", "VMImageSpec.ImageId"),
            ("container_image_spec.registry_url", "ContainerImageSpec.RegistryUrl"),
            ("the request", "the request"),
        ] {
            assert_eq!(parameter(field), name);
        }
    }
}
