//! The deadline of a call, for handlers that return before it passes.

use std::time::Duration;

use tokio::time::Instant;

/// The time at which a call ends. A request extension of every call.
#[derive(Debug, Clone, Copy)]
pub struct CallDeadline {
    /// The deadline as a point in time.
    pub at: Instant,
    /// The time from the arrival of the call to the deadline.
    pub allowed: Duration,
}
