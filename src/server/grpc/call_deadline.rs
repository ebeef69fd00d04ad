//! The deadline of a call, for handlers that return before it passes.

use std::time::Duration;

use tokio::time::Instant;

/// When a call ends. A request extension of every call.
#[derive(Debug, Clone, Copy)]
pub struct CallDeadline {
    /// The point in time.
    pub at: Instant,
    /// The duration of the call until then.
    pub allowed: Duration,
}
