//! The section `[log]`: the format and the filter of the log.

use serde::Deserialize;

use super::{Error, invalid};
use crate::telemetry::{
    DEFAULT_LOG,
    logs::{self, LogFormat},
};

/// `[log]`: the format and the filter of the log. Changes apply without a restart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The format: `human`, or `json` with an object per line.
    pub format: LogFormat,
    /// The filter, in the syntax of `RUST_LOG`, which overrides it.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: DEFAULT_LOG.to_owned() }
    }
}

impl Log {
    /// Rejects invalid values.
    pub(super) fn check(&self) -> Result<(), Error> {
        logs::parse_filter(&self.filter)
            .map(drop)
            .map_err(|error| invalid("log.filter", format!("{:?}: {error}", self.filter)))
    }

    /// Applies the format and the filter to the running process.
    pub fn apply(&self) -> Result<(), Error> {
        logs::apply(self.format, &self.filter).map_err(|error| invalid("log.filter", error))
    }
}
