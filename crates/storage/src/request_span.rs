//! Spans for requests to stores (OpenTelemetry semantic conventions for HTTP, version 1.44).

use domain::ForeignText;
use http::{Method, StatusCode};
use tracing::{Span, field::Empty};
use url::Url;

use super::location::authority;

/// Begins the span of a request (OpenTelemetry semantic conventions for HTTP, "HTTP client"), as a child of the current
/// span.
pub fn begin(method: &Method, url: &Url) -> Span {
    tracing::info_span!(
        "http",
        otel.name = %method,
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = %method,
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
        url.full = shown(url).as_str(),
        http.response.status_code = Empty,
        error.type = Empty,
    )
}

/// Records the outcome of a request: a status, or the kind of its error. A 401, or a 404 to `HEAD`, is expected and
/// does not count as a failure.
pub fn end(span: &Span, method: &Method, outcome: Result<StatusCode, &'static str>) {
    match outcome {
        Err(kind) => fail(span, kind),
        Ok(status) => {
            span.record("http.response.status_code", status.as_u16());
            let asked = status == StatusCode::UNAUTHORIZED || status == StatusCode::NOT_FOUND && method == Method::HEAD;
            if (status.is_client_error() || status.is_server_error()) && !asked {
                fail(span, status.as_str());
            }
        }
    }
}

fn fail(span: &Span, kind: &str) {
    span.record("error.type", kind);
    span.record("otel.status_code", "ERROR");
}

/// Returns a URL without its query, which may contain secrets. The text is untrusted, because a store may have chosen
/// the URL.
pub fn shown(url: &Url) -> ForeignText {
    ForeignText::new(format_args!("{}://{}{}", url.scheme(), authority(url), url.path()))
}
