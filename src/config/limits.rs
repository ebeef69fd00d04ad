//! The section `[limits]`: the limits of callers.

use serde::Deserialize;

use super::{Error, error::positive};
use crate::identity::Quota;

/// `[limits]`: the limits of each caller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The limit of calls a second of each principal, and of calls in a burst. Unlimited if absent.
    pub calls_per_second: Option<u32>,
    /// The limit of concurrent calls and streams of each principal.
    pub max_in_flight: u32,
    /// The limit of failed authentications a minute from each source address, and of failures in a burst. Further
    /// failures are throttled, and counted in the audit log instead of logged one by one. This limit never throttles
    /// valid credentials.
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
