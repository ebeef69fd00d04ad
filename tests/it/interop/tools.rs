//! Runs other programs, independent of this machine's settings.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A private home directory for the programs.
pub struct Tools {
    directory: tempfile::TempDir,
}

impl Tools {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("tools-").tempdir().expect("a directory");
        // Empty credentials, so that the user's own are not read.
        std::fs::write(directory.path().join("auth.json"), "{}").expect("a file");
        Self { directory }
    }

    /// Returns the path of a file or directory that is removed when `self` is dropped.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a program, and returns its output, or its error message.
    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let home = self.directory.path();
        let mut command = Command::new(program);
        command.args(self.storage(program)).args(arguments).current_dir(home);
        command.env("HOME", home).env("XDG_RUNTIME_DIR", home).env("REGISTRY_AUTH_FILE", home.join("auth.json"));
        let output = command.output().map_err(|error| format!("{program}: {error} (scripts/tools)"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// Runs a program that must succeed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_run(program, arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns the options with which podman and buildah store images in the private directory, without overlay file
    /// systems.
    fn storage(&self, program: &str) -> Vec<String> {
        if !["podman", "buildah"].contains(&program) {
            return Vec::new();
        }
        let at = |name: &str| self.path(name).display().to_string();
        ["--root", &at("storage"), "--runroot", &at("run"), "--storage-driver", "vfs"].map(str::to_owned).into()
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}
