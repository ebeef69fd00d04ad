//! `[housekeeping]`.

use serde::Deserialize;

use super::{Error, positive};

/// `[housekeeping]`: what one process at a time does for all.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Housekeeping {
    /// How often, in milliseconds.
    pub interval_ms: u64,
    /// How long synchronizations are kept after they have ended, in seconds.
    pub keep_finished_seconds: u64,
}

impl Default for Housekeeping {
    fn default() -> Self {
        Self { interval_ms: 5_000, keep_finished_seconds: 90 * 24 * 3_600 }
    }
}

impl Housekeeping {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        positive(
            "housekeeping",
            &[("interval_ms", self.interval_ms), ("keep_finished_seconds", self.keep_finished_seconds)],
        )
    }
}
