//! A file system of its own that is frozen: whatever writes to it hangs in the kernel until it is thawed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::Result;

/// A frozen file system. Thawed and unmounted when it is dropped.
pub struct FrozenDisk {
    directory: tempfile::TempDir,
}

fn run(command: &str, arguments: &[&Path]) -> Result<()> {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap_or_default()).args(words).args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command} {arguments:?}: {status}; it takes root").into()) }
}

impl FrozenDisk {
    pub fn new() -> Result<Self> {
        let disk = Self { directory: tempfile::tempdir()? };
        let image = disk.directory.path().join("image");
        std::fs::File::create(&image)?.set_len(256 << 20)?;
        std::fs::create_dir(disk.path())?;
        run("mkfs.ext4 -q", &[&image])?;
        run("mount -o loop", &[&image, &disk.path()])?;
        run("fsfreeze -f", &[&disk.path()])?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        for command in ["fsfreeze -u", "umount --lazy"] {
            if let Err(error) = run(command, &[&self.path()]) {
                eprintln!("{error}");
            }
        }
    }
}
