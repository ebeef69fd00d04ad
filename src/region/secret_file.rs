//! Secrets in files, which others may replace at any time: they are read again whenever they are needed, never kept.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use crate::domain::Secret;

/// The largest file that holds one secret, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// How long reading a file may take: it may lie on a server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a file with secrets can't be used. Its content is never part of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretFileError {
    /// The operating system refused.
    #[error("{} can't be read: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        problem: String,
    },
    /// It is too large to be what it should be.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that it may have.
        limit: u64,
    },
    /// There is nothing in it.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
}

/// Where one secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// It was given when the process started.
    Fixed(Secret),
    /// The file that holds it, and maybe a line's end after it.
    File(PathBuf),
}

impl SecretSource {
    /// The secret as it is now.
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

/// Reads a text file of at most `limit` bytes, and blocks the thread meanwhile.
pub fn read_now(path: &Path, limit: u64) -> Result<String, SecretFileError> {
    let unreadable =
        |error: io::Error| SecretFileError::Unreadable { path: path.to_owned(), problem: error.to_string() };
    let mut text = String::new();
    File::open(path).map_err(unreadable)?.take(limit + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limit { Err(SecretFileError::TooLarge { path: path.to_owned(), limit }) } else { Ok(text) }
}
