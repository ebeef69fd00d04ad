//! Where a store is, as the configuration writes it.

use std::{path::PathBuf, str::FromStr};

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `dir://PATH`: a directory, absolute or relative to where the service runs.
    Dir(PathBuf),
}

/// Why a text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no store that this version works with; expected dir://PATH")]
pub struct LocationError(String);

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        match text.strip_prefix("dir://") {
            Some(path) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err(LocationError(text.to_owned())),
        }
    }
}
