//! Reads a call's single message before the handler does: signature verification and resource authorization need it.

use std::mem;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tonic::{Status, body::Body};

use super::error_response;
use crate::{
    audit::Blocked,
    contract::{ApiError, Contract, v1::CommonErrorCode::InvalidActionNotFound},
    domain::RequestId,
    server::RETRY_AFTER,
};

/// Size of the flag and the length before each message, in bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
pub const MESSAGE_PREFIX_BYTES: usize = 5;

/// Why a call is rejected before its handler runs.
pub enum Rejection {
    Error(ApiError),
    /// The status that a body ended with: it was interrupted, late or too long.
    Status(Status),
}

impl From<Blocked> for Rejection {
    fn from(blocked: Blocked) -> Self {
        Self::Error(ApiError::unavailable(blocked.to_string(), RETRY_AFTER))
    }
}

impl Rejection {
    pub fn into_response(self, contract: &Contract, request_id: RequestId) -> Response<Body> {
        match self {
            Self::Error(error) => error_response(&error, contract, request_id),
            Self::Status(status) => status.into_http(),
        }
    }
}

/// Reads the request's message, whose size [`BodyLimitLayer`](super::BodyLimitLayer) bounds, and puts it back.
pub async fn read_message(request: &mut Request<Body>) -> Result<Bytes, Rejection> {
    let body = mem::replace(request.body_mut(), Body::empty());
    let message = body.collect().await.map_err(Rejection::Status)?.to_bytes();
    if message.first().is_some_and(|flag| *flag != 0) {
        let cause = "Compressed messages are not supported.";
        return Err(Rejection::Error(ApiError::new(InvalidActionNotFound, cause)));
    }
    *request.body_mut() = Body::new(Full::new(message.clone()));
    Ok(message)
}

/// Returns the message of a body that holds exactly one message, so that authorization decides about the same bytes
/// that the handler reads.
pub fn only_message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(MESSAGE_PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?);
    (usize::try_from(length) == Ok(message.len())).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::only_message;

    #[test]
    fn a_body_with_a_second_message_is_rejected() {
        assert_eq!(only_message(&[0, 0, 0, 0, 2, 7, 8]), Some(&[7, 8][..]));
        for bad in [&[][..], &[0, 0, 0, 0][..], &[0, 0, 0, 0, 2, 7][..], &[0, 0, 0, 0, 1, 7, 10, 0][..]] {
            assert_eq!(only_message(bad), None, "{bad:?}");
        }
    }
}
