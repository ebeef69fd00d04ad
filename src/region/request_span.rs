//! A span for a request to a store, as the OpenTelemetry semantic conventions for HTTP have it (version 1.44).

use http::{Method, StatusCode};
use tracing::{Span, field::Empty};
use url::Url;

use super::location::authority;
use crate::domain::ForeignText;

/// The span of a request (OpenTelemetry semantic conventions for HTTP, "HTTP client"), in the one that it is made for.
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

/// Records how a request came out: with a status, or with a fault of this kind. That something is not there yet, or that a store wants to
/// know who asks, is what was asked about.
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

/// A URL without what stands in its query: that may be a secret. Where it leads may be what a store has said.
pub fn shown(url: &Url) -> ForeignText {
    ForeignText::new(format_args!("{}://{}{}", url.scheme(), authority(url), url.path()))
}
