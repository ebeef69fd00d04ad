//! SQLite serves one process: the one that holds a lock on a file beside the database.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{super::Error, Result, Settings};

/// The right to serve a database, for as long as this lives. Any number of processes have it for a database server.
#[derive(Debug)]
pub struct Ownership(#[expect(dead_code, reason = "it is held")] Option<File>);

impl Ownership {
    /// Takes the right. Fails if another process has it.
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

/// Opens a file to write to, and makes one that only its owner may read if there is none.
fn private(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes the file of a database on SQLite if there is none: SQLite itself would make one that everybody may read, and gives the files beside
/// it the same mode.
pub fn make_file(url: &str) -> io::Result<()> {
    let may_create = url.contains("mode=rwc") || !url.contains("mode=");
    match file(url).filter(|_| may_create) {
        Some(path) => private(&path).map(drop),
        None => Ok(()),
    }
}

/// The file of a database on SQLite, unless it is in memory.
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
    use crate::state::{Error, Settings};

    #[test]
    fn a_file_has_one_owner_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings::new(format!("sqlite://{}/state.db?mode=rwc", directory.path().display()));
        let first = Ownership::take(&settings).expect("it is free");
        let refused = Ownership::take(&settings).expect_err("it is owned");
        assert!(matches!(&refused, Error::InUse(path) if path.ends_with("state.db")), "{refused:?}");
        drop(first);
        Ownership::take(&settings).expect("it is free again");
        Ownership::take(&Settings::new("postgres://host/name".to_owned())).expect("it is a server");
    }

    #[test]
    fn the_file_of_a_url_is_found() {
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
