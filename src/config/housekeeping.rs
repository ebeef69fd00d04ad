//! The section `[housekeeping]`: the leader's maintenance.

use serde::Deserialize;

use super::{Error, positive};

/// `[housekeeping]`: the maintenance that the leader does for all processes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Housekeeping {
    /// The interval between two rounds, in milliseconds.
    pub interval_ms: u64,
    /// How long finished synchronizations are kept, in seconds.
    pub keep_finished_seconds: u64,
}

impl Default for Housekeeping {
    fn default() -> Self {
        Self { interval_ms: 5_000, keep_finished_seconds: 90 * 24 * 3_600 }
    }
}

impl Housekeeping {
    /// Rejects invalid values.
    pub(super) fn check(&self) -> Result<(), Error> {
        positive(
            "housekeeping",
            &[("interval_ms", self.interval_ms), ("keep_finished_seconds", self.keep_finished_seconds)],
        )
    }
}
