//! The section `[limits]`: what callers may use.

use serde::Deserialize;

use super::{Error, error::positive};
use crate::identity::Quota;

/// `[limits]`: the limits of each caller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Calls a second of each principal; also the size of a burst. Unlimited if absent.
    pub calls_per_second: Option<u32>,
    /// Concurrent calls and streams of each principal.
    pub max_in_flight: u32,
    /// Failed authentications a minute from each source address; also the size of a burst. Further ones are throttled
    /// and counted in the audit log instead of logged one by one. Valid credentials are never throttled by this limit.
    pub failed_credentials_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { calls_per_second: None, max_in_flight: Quota::MAX_IN_FLIGHT, failed_credentials_per_minute: 120 }
    }
}

impl Limits {
    /// Rejects invalid values.
    pub(super) fn check(&self) -> Result<(), Error> {
        positive(
            "limits",
            &[
                ("max_in_flight", self.max_in_flight.into()),
                ("failed_credentials_per_minute", self.failed_credentials_per_minute.into()),
            ],
        )
    }
}
