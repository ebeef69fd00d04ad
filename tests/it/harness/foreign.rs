//! Tokens and certificates that others make, of Python's libraries.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// A directory with keys and certificates.
pub struct Foreign(tempfile::TempDir);

impl Foreign {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes private keys and their key set, `jwks.json`.
    pub fn keys(&self) {
        self.run("keys", &[]);
    }

    /// A token of these claims.
    pub fn token(&self, key: &str, algorithm: &str, claims: &Value, header: &Value) -> String {
        self.run("token", &[key, algorithm, &claims.to_string(), &header.to_string()])
    }

    /// Makes an authority.
    pub fn authority(&self, name: &str) {
        self.run("ca", &[name]);
    }

    /// Makes a certificate, which is valid from and to so many seconds from now.
    pub fn certificate(&self, authority: &str, name: &str, names: &str, valid: (i64, i64)) {
        self.run("certificate", &[authority, name, names, &valid.0.to_string(), &valid.1.to_string()]);
    }

    fn run(&self, command: &str, arguments: &[&str]) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let made = Command::new(root.join(".tools/bin/python"))
            .arg(root.join("tests/it/harness/foreign.py"))
            .arg(command)
            .arg(self.0.path())
            .args(arguments)
            .output()
            .expect("python runs: source scripts/tools");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).expect("text").trim().to_owned()
    }
}
