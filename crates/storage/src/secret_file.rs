//! Reads secrets from files. The files may be replaced at any time, so they are read on each use and never cached.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use domain::Secret;
use tokio::{task::spawn_blocking, time::timeout};

/// Maximum size of a file with one secret, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// The time limit for reading a file, which may be on a network file system.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a file with secrets can't be used. The text never includes the content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SecretFileError {
    /// The operating system reported an error.
    #[error("{} can't be read: {problem}", path.display())]
    Unreadable {
        path: PathBuf,
        /// The operating system's error, or the timeout.
        problem: String,
    },
    /// The file exceeds its size limit.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge {
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
}

/// Where a secret is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The value, given at startup.
    Fixed(Secret),
    /// A file with the value, optionally followed by a line end.
    File(PathBuf),
}

impl SecretSource {
    /// Reads the current value.
    pub async fn read(&self) -> Result<Secret, SecretFileError> {
        let path = match self {
            Self::Fixed(secret) => return Ok(secret.clone()),
            Self::File(path) => path,
        };
        let text = read(path, MAX_SECRET_BYTES).await?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() { Err(SecretFileError::Empty(path.clone())) } else { Ok(Secret(secret.to_owned())) }
    }
}

/// Reads a text file of at most `limit` bytes.
pub async fn read(path: &Path, limit: u64) -> Result<String, SecretFileError> {
    let unreadable = |problem: String| SecretFileError::Unreadable { path: path.to_owned(), problem };
    let own = path.to_owned();
    match timeout(PATIENCE, spawn_blocking(move || read_now(&own, limit))).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => Err(unreadable(error.to_string())),
        Err(_) => Err(unreadable(format!("nothing came for {} s", PATIENCE.as_secs()))),
    }
}

/// Reads a text file of at most `limit` bytes, blocking the thread.
pub fn read_now(path: &Path, limit: u64) -> Result<String, SecretFileError> {
    let unreadable =
        |error: io::Error| SecretFileError::Unreadable { path: path.to_owned(), problem: error.to_string() };
    let mut text = String::new();
    File::open(path).map_err(unreadable)?.take(limit + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limit { Err(SecretFileError::TooLarge { path: path.to_owned(), limit }) } else { Ok(text) }
}
