//! A call's one message, read before its handler reads it.

use std::{mem, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tonic::{Status, body::Body};

use super::refuse;
use crate::{
    audit::Blocked,
    contract::{Contract, Failure, v1::CommonErrorCode::InvalidActionNotFound},
    domain::RequestId,
};

/// The flag and the length before a message (gRPC over HTTP/2, "Length-Prefixed-Message").
pub const PREFIX: usize = 5;

/// When a call may be repeated that the audit log had no room for.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a call goes no further.
pub enum Refusal {
    Failure(Failure),
    /// The body broke off, or was too long; it says so itself.
    Status(Status),
}

impl From<Blocked> for Refusal {
    fn from(blocked: Blocked) -> Self {
        Self::Failure(Failure::unavailable(blocked.to_string(), RETRY_AFTER))
    }
}

impl Refusal {
    pub fn answer(self, contract: &Contract, request_id: RequestId) -> Response<Body> {
        match self {
            Self::Failure(failure) => refuse(&failure, contract, request_id),
            Self::Status(status) => status.into_http(),
        }
    }
}

/// Reads the request's one message, which is bounded further out, and puts it back.
pub async fn read_message(request: &mut Request<Body>) -> Result<Bytes, Refusal> {
    let body = mem::replace(request.body_mut(), Body::empty());
    let message = body.collect().await.map_err(Refusal::Status)?.to_bytes();
    if message.first().is_some_and(|flag| *flag != 0) {
        let cause = "Compressed messages are not supported.";
        return Err(Refusal::Failure(Failure::new(InvalidActionNotFound, cause)));
    }
    *request.body_mut() = Body::new(Full::new(message.clone()));
    Ok(message)
}

/// The message in a body that holds exactly one: what is decided about is what the handler will read.
pub fn only_message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?);
    (usize::try_from(length) == Ok(message.len())).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::only_message;

    #[test]
    fn a_second_message_is_no_way_around() {
        assert_eq!(only_message(&[0, 0, 0, 0, 2, 7, 8]), Some(&[7, 8][..]));
        for bad in [&[][..], &[0, 0, 0, 0][..], &[0, 0, 0, 0, 2, 7][..], &[0, 0, 0, 0, 1, 7, 10, 0][..]] {
            assert_eq!(only_message(bad), None, "{bad:?}");
        }
    }
}
