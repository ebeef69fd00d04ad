//! A server that speaks the S3 API, in a process and a directory of its own.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use futures_util::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _, aws::AmazonS3Builder};

use super::{address::free_address, until_up};

const USER: &str = "the-tests-user";
const PASSWORD: &str = "the-tests-password";
pub const BUCKET: &str = "apps";

/// An S3 server with one bucket.
#[derive(Debug)]
pub struct Bucket {
    directory: tempfile::TempDir,
    pub address: SocketAddr,
    child: Child,
}

impl Bucket {
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("bucket-").tempdir().expect("a directory");
        let data = directory.path().join("data");
        fs::create_dir_all(data.join(BUCKET)).expect("a bucket");
        let address = free_address();
        let path = directory.path().join("log");
        let log = File::create(&path).expect("a log");
        let child = Command::new("minio")
            .args(["server", "--quiet", "--address", &address.to_string()])
            .arg(&data)
            .envs([("MINIO_ROOT_USER", USER), ("MINIO_ROOT_PASSWORD", PASSWORD), ("HOME", "/nonexistent")])
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("minio is installed (scripts/tools)");
        let mut bucket = Self { directory, address, child };
        let objects = bucket.objects();
        let answers = async || objects.list(None).try_collect::<Vec<_>>().await.ok();
        until_up("the S3 server", &mut bucket.child, &path, answers).await;
        bucket
    }

    /// The file of the secret that [`Bucket::keys`] name.
    pub fn secret(&self) -> std::path::PathBuf {
        self.directory.path().join("secret")
    }

    /// The keys of a region beside its store, by way of an address.
    pub fn keys(&self, by: SocketAddr) -> String {
        let secret = self.secret();
        fs::write(&secret, PASSWORD).expect("a secret");
        format!(
            "endpoint = \"http://{by}\"\naccess_key_id = \"{USER}\"\nsecret_access_key_file = \"{}\"",
            secret.display()
        )
    }

    /// What is in it, seen by another client than the service's.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        let builder = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_bucket_name(BUCKET)
            .with_access_key_id(USER)
            .with_secret_access_key(PASSWORD)
            .with_allow_http(true);
        Arc::new(builder.build().expect("a client"))
    }

    /// Takes what lies below a prefix out into a directory.
    pub async fn pull(&self, prefix: &str, to: &Path) {
        let objects = self.objects();
        let found: Vec<_> = objects.list(Some(&prefix.into())).try_collect().await.expect("a list");
        for object in found {
            let below = object.location.as_ref().strip_prefix(prefix).expect("it is below").trim_start_matches('/');
            let path = to.join(below);
            fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
            let content = objects.get(&object.location).await.expect("it is there").bytes().await.expect("bytes");
            fs::write(path, content).expect("a file");
        }
    }

    /// Uploads in parts that somebody has begun and neither finished nor given up.
    pub fn unfinished(&self) -> usize {
        let uploads = self.directory.path().join("data/.minio.sys/multipart");
        let uploads = fs::read_dir(uploads).into_iter().flatten().flatten();
        uploads.map(|object| fs::read_dir(object.path()).into_iter().flatten().flatten().count()).sum()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
