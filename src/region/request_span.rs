//! A span for a request to a store, as the OpenTelemetry semantic conventions for HTTP have it (version 1.44).

use http::{Method, StatusCode};
use reqwest::Response;
use tracing::{Span, field::Empty};
use url::Url;

/// The span of a request (OpenTelemetry semantic conventions for HTTP, "HTTP client"). Of its URL there is what
/// `what` tells, the request in words.
pub fn begin(method: &Method, url: &Url, what: &str) -> Span {
    tracing::info_span!(
        "http",
        otel.name = %method,
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = %method,
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
        url.full = what.trim_start_matches(method.as_str()).trim_start(),
        http.response.status_code = Empty,
        error.type = Empty,
    )
}

/// Records how a request came out. That something is not there yet, or that a registry wants to know who asks, is what was asked about.
pub fn end<E>(span: &Span, method: &Method, outcome: &Result<reqwest::Result<Response>, E>) {
    let status = match outcome {
        Ok(Ok(response)) => response.status(),
        Ok(Err(_)) => return fail(span, "transport"),
        Err(_) => return fail(span, "timeout"),
    };
    span.record("http.response.status_code", status.as_u16());
    let asked = status == StatusCode::UNAUTHORIZED || status == StatusCode::NOT_FOUND && method == Method::HEAD;
    if (status.is_client_error() || status.is_server_error()) && !asked {
        fail(span, status.as_str());
    }
}

fn fail(span: &Span, kind: &str) {
    span.record("error.type", kind);
    span.record("otel.status_code", "ERROR");
}
