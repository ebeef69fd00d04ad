//! The section `[audit]`: the audit log.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, invalid};
use crate::audit::Destination;

/// `[audit]`: the audit log of authorization decisions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The destination: `stdout`, `stderr`, or the path of a file.
    pub to: String,
    /// The fraction of allowed calls that are logged, from 0 to 1. Denied calls are always logged.
    pub sample_allowed: f64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { to: "stdout".to_owned(), sample_allowed: 1.0 }
    }
}

impl Audit {
    /// Rejects invalid values.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.to.is_empty() {
            return Err(invalid("audit.to", "empty; expected stdout, stderr or the path of a file"));
        }
        if !(0.0..=1.0).contains(&self.sample_allowed) {
            return Err(invalid("audit.sample_allowed", format!("{} is not from 0 to 1", self.sample_allowed)));
        }
        Ok(())
    }

    /// Returns the destination of the audit log.
    #[must_use]
    pub fn destination(&self) -> Destination {
        match self.to.as_str() {
            "stdout" => Destination::Stdout,
            "stderr" => Destination::Stderr,
            path => Destination::File(PathBuf::from(path)),
        }
    }
}
