//! Disk space of a directory: its free space, reservations, and a write test.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use super::DirStore;
use crate::{Error, Result, space::Ledger};

/// The reservations of each file system, by device number: directories on one disk share its space.
static LEDGERS: LazyLock<Mutex<BTreeMap<u64, Arc<Ledger>>>> = LazyLock::new(Mutex::default);

impl DirStore {
    /// Returns the number of free bytes.
    pub(super) fn available(&self) -> Result<u64> {
        let path = self.0.path.display().to_string();
        let fs = rustix::fs::fstatvfs(&self.dir()?)
            .map_err(|error| Error::io("asking for the free space of", path)(error.into()))?;
        Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    /// Writes a file that belongs to no image, and removes it.
    pub(super) fn try_to_write(&self) -> Result<()> {
        let (dir, name) = (self.dir()?, format!(".appferry-probe-{}", uuid::Uuid::now_v7().simple()));
        let path = self.0.path.join(&name).display().to_string();
        let mut file = dir.create(&name).map_err(Error::io("creating", path.as_str()))?;
        let written = file.write_all(b"appferry").and_then(|()| file.sync_all());
        let removed = dir.remove_file(&name);
        written.map_err(Error::io("writing", path.as_str()))?;
        removed.map_err(Error::io("removing", path.as_str()))
    }

    /// Returns the reservations of the directory's file system.
    pub(super) fn ledger(&self) -> Result<Arc<Ledger>> {
        use cap_std::fs::MetadataExt as _;
        let path = self.0.path.display().to_string();
        let device = self.dir()?.dir_metadata().map_err(Error::io("reading", path))?.dev();
        let mut ledgers = LEDGERS.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(ledgers.entry(device).or_default()))
    }
}
