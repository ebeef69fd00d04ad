//! The errors of a configuration, and checks that several sections share.

use std::{fmt::Display, path::PathBuf};

/// The reason why a configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("failed to read {}: {source}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file or the environment has invalid syntax, missing or unknown keys, or values of the wrong type.
    #[error("{}", describe(.0))]
    Form(Box<figment::Error>),
    /// A value is invalid.
    #[error("{key}: {problem}")]
    Value {
        /// The key, with its section.
        key: String,
        /// The problem. It contains the value unless that may be a secret.
        problem: String,
    },
}

/// Lists the problems that the parser found, each with its key.
fn describe(error: &figment::Error) -> String {
    let one = |error: figment::Error| {
        let key = error.path.join(".");
        if key.is_empty() { error.kind.to_string() } else { format!("{key}: {}", error.kind) }
    };
    error.clone().into_iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Returns the error of an invalid value.
pub(super) fn invalid(key: impl Into<String>, problem: impl Display) -> Error {
    Error::Value { key: key.into(), problem: problem.to_string() }
}

/// Rejects amounts and times that are zero or so large that they could overflow.
pub(super) fn positive(section: &str, keys: &[(&str, u64)]) -> Result<(), Error> {
    match keys.iter().find(|(_, number)| *number == 0 || *number > 1 << 40) {
        Some((key, number)) => Err(invalid(format!("{section}.{key}"), format!("{number} is not from 1 to 2^40"))),
        None => Ok(()),
    }
}
