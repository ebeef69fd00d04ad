//! A file system that can be frozen: writes to it block in the kernel until it is thawed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted file system, which is thawed and unmounted when this value is dropped.
#[derive(Debug)]
pub struct FreezableDisk {
    directory: tempfile::TempDir,
}

fn run(command: &str, arguments: &[&Path]) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a command")).args(words).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{command} {arguments:?}: {output:?}");
}

impl FreezableDisk {
    /// Creates and mounts a file system. Returns `None` if this process is not root, because mounting requires root.
    pub fn new() -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            return None;
        }
        let disk =
            Self { directory: tempfile::Builder::new().prefix("appferry-disk-").tempdir().expect("a directory") };
        let image = disk.directory.path().join("image");
        let file = std::fs::File::create(&image).expect("a file");
        file.set_len(1 << 30).expect("a sparse file");
        std::fs::create_dir(disk.path()).expect("a directory");
        run("mkfs.ext4 -q", &[&image]);
        run("mount -o loop", &[&image, &disk.path()]);
        Some(disk)
    }

    /// Returns the mount point.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    pub fn freeze(&self) {
        run("fsfreeze -f", &[&self.path()]);
    }

    pub fn thaw(&self) {
        run("fsfreeze -u", &[&self.path()]);
    }
}

impl Drop for FreezableDisk {
    fn drop(&mut self) {
        // Thawing fails if the file system is not frozen.
        let _ = Command::new("fsfreeze").arg("-u").arg(self.path()).output();
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}
