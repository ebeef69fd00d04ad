//! What the doors have in common by which calls come that are not made by gRPC: each is turned into a call of a method and goes the way of
//! every call, through the same stack; its answer is turned back.

use std::convert::Infallible;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version,
    header::{AUTHORIZATION, CONTENT_TYPE, TE},
};
use http_body_util::{BodyExt as _, Full};
use tonic::{Status, body::Body};
use tower::util::BoxCloneSyncService;

use super::{layer::PREFIX, peer::Peer};

/// The headers that go on with a call: what it is authenticated by, and the trace that it is part of.
const PASSED: [HeaderName; 3] =
    [AUTHORIZATION, HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// The stack, as a door needs it.
pub type Inner = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// A call of a method, as if it had come by gRPC with these headers.
pub fn call(method: Uri, message: &[u8], headers: &HeaderMap, peer: Option<Peer>) -> Request<Body> {
    let mut call = Request::new(Body::new(Full::from(framed(message))));
    *call.method_mut() = Method::POST;
    *call.version_mut() = Version::HTTP_2;
    *call.uri_mut() = method;
    call.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    call.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    for name in PASSED {
        for value in headers.get_all(&name) {
            call.headers_mut().append(name.clone(), value.clone());
        }
    }
    if let Some(peer) = peer {
        call.extensions_mut().insert(peer);
    }
    call
}

/// The message of a call, with what stands before it (gRPC over HTTP/2, "Length-Prefixed-Message").
fn framed(message: &[u8]) -> Bytes {
    // It was made of less than 2^32 bytes.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

/// The one message of an answer, or the status that it ends with.
pub async fn answer(response: Response<Body>) -> Result<Vec<u8>, Status> {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Err(status);
    }
    let collected = response.into_body().collect().await?;
    let none = HeaderMap::new();
    match Status::from_header_map(collected.trailers().unwrap_or(&none)) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        _ => Ok(collected.to_bytes().get(PREFIX..).unwrap_or_default().to_vec()),
    }
}
