//! An HTTP request as it arrived, before a frontend turned it into a gRPC call: signatures cover the original form.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};

use crate::contract::ApiError;

/// The request that a call was made from. A request extension of calls that an HTTP frontend makes.
#[derive(Debug, Clone)]
pub struct OriginalRequest {
    /// Method, target and headers.
    pub head: RequestHead,
    /// The complete content, or the error that ended its reading.
    pub content: Result<Bytes, ApiError>,
    /// Whether the signature is in the parameters (HMAC-SHA1, the scheme before ACS3), which is not supported.
    pub signed_by_parameters: bool,
}

/// Method, target and headers of a request.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are named as in HTTP")]
pub struct RequestHead {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

impl RequestHead {
    /// Copies the head of a request.
    pub fn new<B>(request: &Request<B>) -> Self {
        let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
        Self { method, uri, headers }
    }
}

/// Why an HTTP request can't be turned into a call. A request extension; the call is rejected with it after
/// authorization, so that only permitted callers see it.
#[derive(Debug, Clone)]
pub struct MalformedRequest(pub ApiError);
