//! The distribution project's registry, each in a process and a directory of its own, and skopeo, which writes what we read and
//! reads what we wrote.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{address::free_address, until_up};

/// `bob` and `the-stores-secret`, as `htpasswd -nB` writes them.
const HTPASSWD: &str = "bob:$2y$05$nHteKL/I1p1myKua7VxXH.AXK1JZ/uUnIh79.JM4/4Odn7XJiKTFu";

/// The part of a configuration by which a registry asks for that name and password, which are written to a file of the directory.
pub fn asks_for_password(directory: &Path) -> String {
    let path = directory.join("htpasswd");
    fs::write(&path, HTPASSWD).expect("a file");
    format!("auth:\n  htpasswd:\n    realm: registry\n    path: {}", path.display())
}

/// A registry.
#[derive(Debug)]
pub struct Registry {
    pub directory: tempfile::TempDir,
    pub address: SocketAddr,
    child: Child,
}

impl Registry {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts a registry whose configuration has more lines.
    pub async fn start_with(more: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("registry-").tempdir().expect("a directory");
        let address = free_address();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n  secret: a-secret\n{more}\n",
            directory.path().join("data").display()
        );
        fs::write(directory.path().join("config.yml"), config).expect("a configuration");
        let child = spawn(directory.path());
        let mut registry = Self { directory, address, child };
        registry.listening().await;
        registry
    }

    async fn listening(&mut self) {
        let address = self.address;
        let log = self.directory.path().join("log");
        let answers = async || tokio::net::TcpStream::connect(address).await.ok();
        until_up("the registry", &mut self.child, &log, answers).await;
    }

    /// Ends it and starts it again, with what it had.
    pub async fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.directory.path());
        self.listening().await;
    }

    /// Sends it a signal.
    #[allow(dead_code, reason = "not every bench does")]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("an id")).expect("an id");
        kill_process(pid, signal).expect("it can be told");
    }

    pub fn stop(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Where a region of the name has it.
    pub fn store(&self, namespace: &str) -> String {
        format!("registry+http://{}/{namespace}", self.address)
    }

    /// Puts a layout into the registry, with all of its platforms.
    pub fn push(&self, layout: &Path, name: &str) {
        skopeo(&["copy", "--all", "--preserve-digests", "--dest-tls-verify=false", &oci(layout), &self.docker(name)]);
    }

    /// Takes an image out of the registry into a layout, with all of its platforms.
    pub fn pull(&self, name: &str, layout: &Path) {
        skopeo(&["copy", "--all", "--preserve-digests", "--src-tls-verify=false", &self.docker(name), &oci(layout)]);
    }

    pub fn docker(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }

    /// Uploads that somebody has begun and neither finished nor given up. (Of one that was given up, it keeps the directory.)
    pub fn unfinished(&self) -> Vec<String> {
        let mut open = vec![self.directory.path().join("data")];
        let mut found = Vec::new();
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.parent().is_some_and(|parent| parent.ends_with("_uploads")) && path.join("data").exists() {
                    found.push(path.display().to_string());
                } else if path.is_dir() {
                    open.push(path);
                }
            }
        }
        found
    }

    /// The file of a blob's bytes.
    pub fn blob(&self, digest: &str) -> std::path::PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(directory: &Path) -> Child {
    let log = File::create(directory.join("log")).expect("a log");
    Command::new("docker-registry")
        .args(["serve", "config.yml"])
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("docker-registry is installed (scripts/tools)")
}

fn oci(layout: &Path) -> String {
    format!("oci:{}", layout.display())
}

pub fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").args(arguments).output().expect("skopeo is installed (scripts/tools)");
    assert!(output.status.success(), "skopeo {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}
