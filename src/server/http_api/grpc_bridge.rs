//! Bridge for non-gRPC frontends: turns an HTTP request into a gRPC call through the same stack, and the call's
//! response back into a message.

use std::convert::Infallible;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version,
    header::{AUTHORIZATION, CONTENT_TYPE, TE},
};
use http_body_util::{BodyExt as _, Full};
use tonic::{Status, body::Body};
use tower::util::BoxCloneSyncService;

use crate::server::{listener::peer::Peer, middleware::MESSAGE_PREFIX_BYTES};

/// Request headers that are passed on: the credential, and the trace context.
const PASSED_HEADERS: [HeaderName; 3] =
    [AUTHORIZATION, HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// The middleware stack in the form in which frontends call it.
pub type GrpcStack = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Creates a gRPC call of a method with the headers and the peer of an HTTP request.
pub fn grpc_request(method: Uri, message: &[u8], headers: &HeaderMap, peer: Option<Peer>) -> Request<Body> {
    let mut request = Request::new(Body::new(Full::from(length_prefixed(message))));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = method;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    for name in PASSED_HEADERS {
        for value in headers.get_all(&name) {
            request.headers_mut().append(name.clone(), value.clone());
        }
    }
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    request
}

/// Prefixes a message with its flag and length (gRPC over HTTP/2, "Length-Prefixed-Message").
fn length_prefixed(message: &[u8]) -> Bytes {
    // Frontends limit requests to far less than 4 GiB.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

/// Returns the message of a unary response.
///
/// # Errors
///
/// Fails with the status of the response, if the status is not OK.
pub async fn response_message(response: Response<Body>) -> Result<Vec<u8>, Status> {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Err(status);
    }
    let collected = response.into_body().collect().await?;
    let none = HeaderMap::new();
    match Status::from_header_map(collected.trailers().unwrap_or(&none)) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        _ => Ok(collected.to_bytes().get(MESSAGE_PREFIX_BYTES..).unwrap_or_default().to_vec()),
    }
}
