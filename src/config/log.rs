//! `[log]`.

use serde::Deserialize;

use super::{Error, value};
use crate::telemetry::{
    DEFAULT_LOG,
    logs::{self, LogFormat},
};

/// `[log]`: what is logged, and how. Read again while the service runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `human`, or `json`: an object a line.
    pub format: LogFormat,
    /// What is logged, in the form of `RUST_LOG`, which wins.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: DEFAULT_LOG.to_owned() }
    }
}

impl Log {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        logs::parse_filter(&self.filter)
            .map(drop)
            .map_err(|error| value("log.filter", format!("{:?}: {error}", self.filter)))
    }

    /// Logs like this from now on.
    pub fn apply(&self) -> Result<(), Error> {
        logs::apply(self.format, &self.filter).map_err(|error| value("log.filter", error))
    }
}
