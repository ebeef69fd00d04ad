//! The registry of go-containerregistry, in its own process. It supports the referrers API of the distribution
//! specification 1.1 and keeps everything in memory. (Its `main` is in `oci-registry/`.)

use std::{
    fs::File,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use super::{address::free_address, until_up};

/// A registry with the referrers API.
#[derive(Debug)]
pub struct OciRegistry {
    pub address: SocketAddr,
    _directory: tempfile::TempDir,
    child: Child,
}

impl OciRegistry {
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("registry-").tempdir().expect("a directory");
        let address = free_address();
        let path = directory.path().join("log");
        let log = File::create(&path).expect("a log");
        let child = Command::new("oci-registry")
            .args(["-address", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("oci-registry is installed (scripts/tools)");
        let mut registry = Self { address, _directory: directory, child };
        let answers = async || tokio::net::TcpStream::connect(address).await.ok();
        until_up("the registry", &mut registry.child, &path, answers).await;
        registry
    }

    /// Returns the store URL of a namespace in this registry.
    pub fn store(&self, namespace: &str) -> String {
        format!("registry+http://{}/{namespace}", self.address)
    }
}

impl Drop for OciRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
