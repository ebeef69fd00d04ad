//! Generation of request ids.

use uuid::Uuid;

use crate::domain::RequestId;

/// Generates an id from the system clock and the system's randomness (RFC 9562, version 7). Ids of one process sort in
/// the order of their generation.
#[must_use]
pub fn new_request_id() -> RequestId {
    Uuid::now_v7().into()
}
