//! `[audit]`.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, value};
use crate::audit::Destination;

/// `[audit]`: where decisions are written down.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// `stdout`, `stderr`, or the path of a file.
    pub to: String,
    /// The part of what is allowed that is written down, from 0 to 1. All that is denied is.
    pub sample_allowed: f64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { to: "stdout".to_owned(), sample_allowed: 1.0 }
    }
}

impl Audit {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.to.is_empty() {
            return Err(value("audit.to", "it is empty; expected stdout, stderr or the path of a file"));
        }
        if !(0.0..=1.0).contains(&self.sample_allowed) {
            return Err(value("audit.sample_allowed", format!("{} is not from 0 to 1", self.sample_allowed)));
        }
        Ok(())
    }

    /// Where it goes.
    #[must_use]
    pub fn destination(&self) -> Destination {
        match self.to.as_str() {
            "stdout" => Destination::Stdout,
            "stderr" => Destination::Stderr,
            path => Destination::File(PathBuf::from(path)),
        }
    }
}
