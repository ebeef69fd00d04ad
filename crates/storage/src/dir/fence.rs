//! The fence in an image's directory identifies the claim that may make the image visible there. The fence's file is
//! locked from the check of the fence until the write that depends on the check, so that no other process on the host
//! can intervene.
//!
//! A claim writes its fence when it prepares the directory, after the journal has confirmed the claim. A publication
//! fails if the fence is not its own, because another claim has then prepared the directory. The journal is
//! authoritative: after a restore of the database from a backup, the fence in a file may be higher than the current
//! claim's.

use std::{
    fs::{File, TryLockError},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use cap_std::fs::{Dir, MetadataExt as _, OpenOptions};
use domain::ImageName;

use crate::{Error, Result};

/// The file in an image's directory that holds the fence and is locked.
pub const FENCE: &str = ".appferry-fence";
/// Maximum number of bytes read from the file.
const MAX_BYTES: u64 = 32;

/// Holds the lock on an image's directory until it is dropped. The operating system releases it when the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: String,
}

impl Lock {
    /// Acquires the lock. Returns `None` if another process holds it. Fails if the image's directory does not exist.
    ///
    /// On a file system without locks, this always succeeds. Then only the fence protects two processes on one host
    /// from each other.
    pub fn try_acquire(dir: &Dir, name: &ImageName) -> Result<Option<Self>> {
        let path = format!("{name}/{FENCE}");
        if dir.symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::malformed(path, "it is not a file"));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = dir.open_with(&path, &options).map_err(Error::io("opening", &path))?.into_std();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) if has_no_locks(&error) => {}
            Err(TryLockError::Error(error)) => return Err(Error::io("locking", &path)(error)),
        }
        // The directory may have been removed and created again since the file was opened. The lock is then on a
        // deleted file.
        let locked = file.metadata().map_err(Error::io("reading", &path))?;
        let current = dir.metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (locked.dev(), locked.ino()));
        Ok(current.then_some(Self { file, path }))
    }

    /// Returns the fence of the claim that prepared the directory last. Returns `None` if there was no claim, or if a
    /// power loss left the file half-written.
    pub fn fence(&self) -> Result<Option<u64>> {
        let mut content = vec![0; usize::try_from(MAX_BYTES).unwrap_or_default()];
        let length = self.file.read_at(&mut content, 0).map_err(Error::io("reading", &self.path))?;
        content.truncate(length);
        Ok(std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok()))
    }

    /// Writes the fence of a claim, which may then publish. Returns false if the file has this fence already.
    pub fn set_fence(&self, fence: u64) -> Result<bool> {
        if self.fence()? == Some(fence) {
            return Ok(false);
        }
        // The file is overwritten in place, with a fixed length, because replacing it would lose its lock.
        let write = || {
            self.file.write_all_at(format!("{fence:020}\n").as_bytes(), 0)?;
            self.file.sync_all()
        };
        write().map_err(Error::io("writing", &self.path))?;
        Ok(true)
    }

    /// Fails with `Overtaken` unless the claim with this fence prepared the directory last.
    pub fn require(&self, fence: u64) -> Result<()> {
        if self.fence()? == Some(fence) { Ok(()) } else { Err(Error::Overtaken) }
    }
}

/// Reads the fence in an image's directory without a lock. Returns `None` if there is none.
pub fn read(dir: &Dir, name: &ImageName) -> Option<u64> {
    let mut text = String::new();
    dir.open(format!("{name}/{FENCE}")).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let without = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK, Errno::INVAL];
    error.kind() == io::ErrorKind::Unsupported
        || without.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use cap_std::{ambient_authority, fs::Dir};
    use domain::ImageName;

    use super::{FENCE, Lock};
    use crate::Error;

    fn image() -> (tempfile::TempDir, Dir, ImageName) {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("a")).expect("an image's directory");
        let dir = Dir::open_ambient_dir(directory.path(), ambient_authority()).expect("it is there");
        (directory, dir, ImageName("a".to_owned()))
    }

    #[test]
    fn one_writer_at_a_time_holds_the_lock() {
        let (_directory, dir, name) = image();
        let lock = Lock::try_acquire(&dir, &name).expect("a lock").expect("it is free");
        assert!(Lock::try_acquire(&dir, &name).expect("an answer").is_none());
        drop(lock);
        assert!(Lock::try_acquire(&dir, &name).expect("an answer").is_some());
    }

    #[test]
    fn only_the_claim_that_prepared_last_may_publish() {
        let (_directory, dir, name) = image();
        let lock = Lock::try_acquire(&dir, &name).expect("a lock").expect("it is free");
        assert_eq!(lock.fence().expect("it is read"), None);
        assert!(lock.set_fence(1_790_000_000_123).expect("it is written"));
        assert!(!lock.set_fence(1_790_000_000_123).expect("it is read"), "it is not written again");
        lock.require(1_790_000_000_123).expect("its own fence");
        // A lower fence: the database was restored from a backup, and the current claims are those in the database.
        assert!(lock.set_fence(7).expect("it is written"));
        lock.require(7).expect("its own fence");
        assert!(matches!(lock.require(1_790_000_000_123), Err(Error::Overtaken)));
        assert_eq!(super::read(&dir, &name), Some(7));
    }

    #[test]
    fn a_lock_on_a_directory_that_was_removed_is_none() {
        let (directory, dir, name) = image();
        let lock = Lock::try_acquire(&dir, &name).expect("a lock").expect("it is free");
        std::fs::remove_file(directory.path().join("a").join(FENCE)).expect("it is removed");
        let newer = Lock::try_acquire(&dir, &name).expect("a lock").expect("it is another file");
        assert_eq!(newer.fence().expect("it is read"), None);
        drop((lock, newer));
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let (directory, dir, name) = image();
        std::fs::create_dir(directory.path().join("a").join(FENCE)).expect("a directory in its place");
        assert!(matches!(Lock::try_acquire(&dir, &name), Err(Error::Malformed { .. })));
    }
}
