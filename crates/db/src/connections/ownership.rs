//! Exclusive ownership of an SQLite database by one process, through a lock on a file beside it.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{super::Error, Result, Settings};

/// Ownership of a database until this value is dropped. Any number of processes can own a database on a server.
#[derive(Debug)]
pub struct Ownership(#[expect(dead_code, reason = "dropping the file releases its lock")] Option<File>);

impl Ownership {
    /// Acquires ownership. Returns [`Error::InUse`] if another process owns the database.
    pub fn take(settings: &Settings) -> Result<Self> {
        let Some(database) = file(&settings.url) else { return Ok(Self(None)) };
        let mut name = database.clone().into_os_string();
        name.push(".lock");
        let path = PathBuf::from(name);
        let failed = |error| Error::Lock(path.clone(), Arc::new(error));
        let lock = private(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self(Some(lock))),
            Err(TryLockError::WouldBlock) => Err(Error::InUse(database)),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// Opens a file for writing. Creates it with mode 0600 if it does not exist.
fn private(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Creates the file of an SQLite database if it does not exist. SQLite itself would create a file that every user can
/// read. SQLite copies the mode of this file to the files next to it.
pub fn create_file(url: &str) -> io::Result<()> {
    let may_create = url.contains("mode=rwc") || !url.contains("mode=");
    match file(url).filter(|_| may_create) {
        Some(path) => private(&path).map(drop),
        None => Ok(()),
    }
}

/// Returns the file of an SQLite database, or `None` for one in memory or on a server.
pub fn file(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = path.split('?').next().unwrap_or(path);
    (!path.is_empty() && path != ":memory:").then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Ownership, file};
    use crate::{Error, Settings};

    #[test]
    fn a_file_has_one_owner_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings::new(format!("sqlite://{}/state.db?mode=rwc", directory.path().display()));
        let first = Ownership::take(&settings).expect("a free database");
        let error = Ownership::take(&settings).expect_err("another owner");
        assert!(matches!(&error, Error::InUse(path) if path.ends_with("state.db")), "{error:?}");
        drop(first);
        Ownership::take(&settings).expect("a free database");
        Ownership::take(&Settings::new("postgres://host/name".to_owned())).expect("a shared server");
    }

    #[test]
    fn a_url_names_a_file() {
        for (url, path) in [
            ("sqlite://state.db", Some("state.db")),
            ("sqlite:///srv/state.db?mode=ro", Some("/srv/state.db")),
            ("sqlite:state.db", Some("state.db")),
            ("sqlite::memory:", None),
            ("sqlite://:memory:", None),
            ("mysql://host/name", None),
        ] {
            assert_eq!(file(url), path.map(PathBuf::from), "{url}");
        }
    }
}
