//! Error responses of a bucket's service: the provider's code, and advice such as the permission to grant.

use std::time::Duration;

use domain::ForeignText;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use object_store::client::{HttpError, HttpErrorKind, HttpResponse};

use crate::{Provider, http_response::retry_after};

/// Error codes of failures that may be transient (Amazon S3, "Error responses"; the other providers adopted them): the
/// service is busy, the clocks differ, a temporary key is about to be replaced, or the bytes changed in transit.
const TRANSIENT_CODES: [&str; 9] = [
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "RequestExpired",
    "SlowDown",
    "OperationAborted",
    "ExpiredToken",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
];
/// Error codes with which a store reports that it is out of space.
const FULL: [&str; 3] = ["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"];

/// The error for a refused request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}{detail}{advice}")]
pub struct Refused {
    /// The HTTP status of the response.
    pub status: StatusCode,
    /// The provider's error code; empty if the response has none.
    pub code: String,
    /// The code and the message, with a leading separator.
    pub detail: ForeignText,
    /// Advice for the operator, with a leading separator; may be empty.
    pub advice: String,
    /// The delay that the response's `Retry-After` header requests.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// Returns whether a retry may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.status.as_u16() {
            // The service does not support the request.
            501 | 505 => false,
            408 | 425 | 429 | 500.. => true,
            _ => TRANSIENT_CODES.contains(&self.code.as_str()) || self.is_full(),
        }
    }

    /// Returns whether the service is out of space, which an operator can free at any time.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.status == StatusCode::INSUFFICIENT_STORAGE || FULL.contains(&self.code.as_str())
    }
}

/// The operation of a request, which determines the permissions that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reading an object or its metadata.
    Read,
    /// Writing an object.
    Write,
    /// Writing an object as a copy of another.
    Copy,
    /// Deleting an object.
    Delete,
    /// Aborting a multipart upload.
    Abort,
}

impl Action {
    /// Determines the operation of a request.
    pub fn of(method: &Method, query: Option<&str>, headers: &HeaderMap) -> Self {
        let copies = ["x-amz-copy-source", "x-goog-copy-source", "x-ms-copy-source"];
        let is_upload = query.is_some_and(|query| query.contains("uploadId="));
        match *method {
            Method::GET | Method::HEAD => Self::Read,
            Method::DELETE if is_upload => Self::Abort,
            Method::DELETE => Self::Delete,
            _ if copies.iter().any(|copy| headers.contains_key(*copy)) => Self::Copy,
            _ => Self::Write,
        }
    }

    /// Returns the provider's names of the permissions that the operation needs.
    fn permission(self, provider: Provider) -> &'static str {
        match (provider, self) {
            (Provider::S3, Self::Read) => "s3:GetObject",
            (Provider::S3, Self::Write) => "s3:PutObject",
            (Provider::S3, Self::Copy) => "s3:GetObject and s3:PutObject",
            (Provider::S3, Self::Delete) => "s3:DeleteObject",
            (Provider::S3, Self::Abort) => "s3:AbortMultipartUpload",
            (Provider::Gcs, Self::Read) => "storage.objects.get",
            // Overwriting an object requires the permission to delete it.
            (Provider::Gcs, Self::Write) => "storage.objects.create and storage.objects.delete",
            (Provider::Gcs, Self::Copy) => "storage.objects.get and storage.objects.create",
            (Provider::Gcs, Self::Delete) => "storage.objects.delete",
            (Provider::Gcs, Self::Abort) => "storage.multipartUploads.abort",
            (Provider::Azure, Self::Read) => "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read",
            (Provider::Azure, Self::Write | Self::Copy | Self::Abort) => {
                "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write"
            }
            (Provider::Azure, Self::Delete) => "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete",
        }
    }
}

/// Converts an error response into an error that states the service's reason. Returns every other response unchanged,
/// and those that the library must handle itself: a missing object, an unchanged object, or a failed precondition.
pub async fn read(provider: Provider, action: Action, response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let status = response.status();
    let moved = response.headers().get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
    let moved = moved.filter(|_| status.is_redirection()).map(str::to_owned);
    let is_refusal = status.is_client_error() || status.is_server_error() || moved.is_some();
    if !is_refusal || matches!(status, StatusCode::NOT_MODIFIED | StatusCode::PRECONDITION_FAILED) {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    // If the body can't be read, the error still has the status.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    let code = code(&parts.headers, &text);
    if status == StatusCode::NOT_FOUND && !matches!(code, "NoSuchBucket" | "ContainerNotFound") {
        return Ok(HttpResponse::from_parts(parts, body.clone().into()));
    }
    let message = message(&text);
    let separated =
        |text: &str, separator: &str| if text.is_empty() { String::new() } else { format!("{separator}{text}") };
    let detail = separated(&format!("{code}{}", separated(message, ": ")), " ");
    let refused = Refused {
        status,
        code: code.to_owned(),
        detail: ForeignText::new(detail),
        advice: moved.map_or_else(|| advice(provider, action, status, code), |region| other_region(&region)),
        retry_after: retry_after(&parts.headers),
    };
    let kind = if refused.is_transient() && status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        HttpErrorKind::Request
    } else {
        HttpErrorKind::Unknown
    };
    Err(HttpError::new(kind, refused))
}

/// Returns the provider's error code. A response without a body may have the code in a header.
fn code<'a>(headers: &'a HeaderMap, body: &'a str) -> &'a str {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    between(body, "<Code>", "</Code>")
        .or_else(|| header("x-ms-error-code"))
        .or_else(|| header("x-minio-error-code"))
        .filter(|code| code.len() <= 100)
        .unwrap_or_default()
}

fn message(body: &str) -> &str {
    let json = || between(body, "\"message\": \"", "\"");
    between(body, "<Message>", "</Message>").or_else(json).unwrap_or_default().trim().trim_end_matches('.')
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

fn other_region(region: &str) -> String {
    let region = ForeignText::value(region);
    format!("; the bucket is in {region}: set the region's bucket_region to that")
}

/// Returns a hint for the operator.
fn advice(provider: Provider, action: Action, status: StatusCode, code: &str) -> String {
    match code {
        "NoSuchBucket" | "ContainerNotFound" => "; create the bucket, or correct the region's store".to_owned(),
        "InvalidAccessKeyId" => "; the service does not know the region's access key: correct access_key_id".to_owned(),
        "SignatureDoesNotMatch" => {
            "; the secret is not that of the region's access key: correct secret_access_key_file or _env".to_owned()
        }
        "ExpiredToken" | "TokenRefreshRequired" => {
            "; the temporary key has ended: put its successor into the region's credentials_file".to_owned()
        }
        "RequestTimeTooSkewed" => "; this machine's clock or the service's is wrong: synchronize them".to_owned(),
        _ if FULL.contains(&code) => "; make room in it, or raise its quota".to_owned(),
        _ if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
            let hidden = match (provider, action) {
                (Provider::S3, Action::Read) => ", and s3:ListBucket, without which a missing object looks the same",
                (Provider::Gcs, Action::Read) => {
                    ", and storage.objects.list, without which a missing object looks the same"
                }
                _ => "",
            };
            format!("; the region's credentials need {}{hidden}", action.permission(provider))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};
    use object_store::client::{HttpErrorKind, HttpResponse, HttpResponseBody};

    use super::{Action, Refused, read};
    use crate::Provider;

    async fn refused(
        provider: Provider,
        action: Action,
        status: u16,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<(HttpErrorKind, Refused)> {
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response: HttpResponse = response.body(HttpResponseBody::from(body.to_owned())).expect("a response");
        let error = read(provider, action, response).await.err()?;
        let source = std::error::Error::source(&error).expect("a cause");
        Some((error.kind(), source.downcast_ref::<Refused>().expect("a refusal").clone()))
    }

    fn xml(code: &str, message: &str) -> String {
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
    }

    #[tokio::test]
    async fn a_refusal_names_the_code_and_what_would_help() {
        for (provider, action, status, body, told, transient) in [
            (
                Provider::S3,
                Action::Write,
                403,
                xml("AccessDenied", "no"),
                "AccessDenied: no; the region's credentials need s3:PutObject",
                false,
            ),
            (Provider::S3, Action::Read, 403, String::new(), "need s3:GetObject, and s3:ListBucket", false),
            (Provider::S3, Action::Abort, 403, xml("AccessDenied", ""), "s3:AbortMultipartUpload", false),
            (Provider::Gcs, Action::Delete, 403, String::new(), "storage.objects.delete", false),
            (Provider::S3, Action::Write, 403, xml("RequestTimeTooSkewed", "late"), "clock", true),
            (Provider::S3, Action::Write, 403, xml("InvalidAccessKeyId", ""), "correct access_key_id", false),
            (Provider::S3, Action::Write, 400, xml("ExpiredToken", ""), "credentials_file", true),
            (Provider::S3, Action::Write, 400, xml("InvalidRequest", "x"), "400 Bad Request InvalidRequest: x", false),
            (Provider::S3, Action::Write, 503, xml("SlowDown", "Slow down."), "SlowDown: Slow down", true),
            (Provider::S3, Action::Write, 501, xml("NotImplemented", "x"), "NotImplemented", false),
            (Provider::S3, Action::Write, 507, xml("XMinioStorageFull", "x"), "make room", true),
            (Provider::S3, Action::Read, 404, xml("NoSuchBucket", "x"), "create the bucket", false),
        ] {
            let (kind, refused) = refused(provider, action, status, &[], &body).await.expect("it is one");
            let text = refused.to_string();
            assert!(text.contains(told), "{status} {body}: {text}");
            assert_eq!(refused.is_transient(), transient, "{text}");
            assert_eq!(
                kind == HttpErrorKind::Request,
                transient && status >= 500,
                "the library sends it again: {text}"
            );
        }
        let moved = [("x-amz-bucket-region", "eu-west-1")];
        let (_, refused) = refused(Provider::S3, Action::Read, 301, &moved, "").await.expect("it is one");
        assert!(refused.to_string().contains("set the region's bucket_region to that"), "{refused}");
    }

    #[tokio::test]
    async fn what_the_library_has_to_see_is_left_alone() {
        for (status, body) in [(200, ""), (206, "x"), (304, ""), (404, ""), (404, "<Code>NoSuchKey</Code>"), (412, "")]
        {
            assert!(refused(Provider::S3, Action::Read, status, &[], body).await.is_none(), "{status} {body}");
        }
    }

    #[test]
    fn what_a_request_does_is_known_by_it() {
        let copy =
            HeaderMap::from_iter([(http::HeaderName::from_static("x-amz-copy-source"), "/b/k".parse().expect("v"))]);
        for (method, query, headers, action) in [
            (Method::HEAD, None, HeaderMap::new(), Action::Read),
            (Method::PUT, Some("partNumber=1&uploadId=u"), HeaderMap::new(), Action::Write),
            (Method::POST, Some("uploads"), HeaderMap::new(), Action::Write),
            (Method::PUT, None, copy, Action::Copy),
            (Method::DELETE, Some("uploadId=u"), HeaderMap::new(), Action::Abort),
            (Method::DELETE, None, HeaderMap::new(), Action::Delete),
        ] {
            assert_eq!(Action::of(&method, query, &headers), action);
        }
        assert_eq!(Action::Read.permission(Provider::S3), "s3:GetObject");
    }
}
