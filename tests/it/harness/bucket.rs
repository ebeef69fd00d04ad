//! An S3 server (MinIO) in its own process and directory.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use futures_util::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _, aws::AmazonS3Builder};
use sha2::{Digest as _, Sha256};
use url::form_urlencoded;

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

    /// Returns the path of the file with the secret that [`Bucket::keys`] refers to.
    pub fn secret(&self) -> std::path::PathBuf {
        self.directory.path().join("secret")
    }

    /// Returns the configuration keys of a region whose store is this bucket, with `by` as the endpoint address.
    pub fn keys(&self, by: SocketAddr) -> String {
        let secret = self.secret();
        fs::write(&secret, PASSWORD).expect("a secret");
        format!(
            "endpoint = \"http://{by}\"\naccess_key_id = \"{USER}\"\nsecret_access_key_file = \"{}\"",
            secret.display()
        )
    }

    /// Returns a client of the bucket that does not use the code under test.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        self.objects_of(BUCKET)
    }

    fn objects_of(&self, bucket: &str) -> Arc<dyn ObjectStore> {
        let builder = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_bucket_name(bucket)
            .with_access_key_id(USER)
            .with_secret_access_key(PASSWORD)
            .with_allow_http(true);
        Arc::new(builder.build().expect("a client"))
    }

    /// Downloads the objects below a prefix to a directory.
    pub async fn pull(&self, prefix: &str, to: &Path) {
        self.pull_from(BUCKET, prefix, to).await;
    }

    /// Downloads the objects below a prefix of a bucket to a directory.
    pub async fn pull_from(&self, bucket: &str, prefix: &str, to: &Path) {
        let objects = self.objects_of(bucket);
        let listed: Vec<_> = objects.list(Some(&prefix.into())).try_collect().await.expect("a list");
        for object in listed {
            let below = object.location.as_ref().strip_prefix(prefix).expect("it is below").trim_start_matches('/');
            let path = to.join(below);
            fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
            let content = objects.get(&object.location).await.expect("it is there").bytes().await.expect("bytes");
            fs::write(path, content).expect("a file");
        }
    }

    /// Creates a bucket with Object Lock, which retains every object for one day.
    pub fn make_locked(&self, bucket: &str) {
        self.request("s3", "PUT", &format!("/{bucket}"), &["x-amz-bucket-object-lock-enabled: true"], "");
        let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                    <Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
        self.request("s3", "PUT", &format!("/{bucket}?object-lock="), &[], rule);
    }

    /// Writes a credentials file with a temporary key that is restricted to `actions`.
    pub fn temporary_key(&self, actions: &[&str]) -> String {
        let actions = actions.iter().map(|action| format!("\"{action}\"")).collect::<Vec<_>>().join(",");
        let policy = format!(
            "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Effect\":\"Allow\",\"Action\":[{actions}],\
             \"Resource\":[\"arn:aws:s3:::*\"]}}]}}"
        );
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("Action", "AssumeRole"), ("Version", "2011-06-15"), ("Policy", &policy)])
            .finish();
        let answer = self.request("sts", "POST", "/", &["content-type: application/x-www-form-urlencoded"], &form);
        let part = |name: &str| {
            let (_, rest) = answer.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("{answer}"));
            rest.split('<').next().unwrap_or_default().to_owned()
        };
        format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {}\n",
            part("AccessKeyId"),
            part("SecretAccessKey"),
            part("SessionToken")
        )
    }

    /// Sends an administrative request with `curl`, and returns the response body.
    fn request(&self, service: &str, method: &str, path: &str, headers: &[&str], body: &str) -> String {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", "--request", method, "--data-binary", body]);
        command.args(["--user", &format!("{USER}:{PASSWORD}"), "--aws-sigv4", &format!("aws:amz:us-east-1:{service}")]);
        let digest = hex::encode(Sha256::digest(body));
        command.args(["--header", &format!("x-amz-content-sha256: {digest}")]);
        command.args(["--header", &format!("content-md5: {}", md5(body))]);
        command.args(headers.iter().flat_map(|header| ["--header", header]));
        let output = command.arg(format!("http://{}{path}", self.address)).output().expect("curl is installed");
        assert!(output.status.success(), "{method} {path}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Returns the number of multipart uploads that were neither completed nor aborted.
    pub fn unfinished(&self) -> usize {
        let uploads = self.directory.path().join("data/.minio.sys/multipart");
        let uploads = fs::read_dir(uploads).into_iter().flatten().flatten();
        uploads.map(|object| fs::read_dir(object.path()).into_iter().flatten().flatten().count()).sum()
    }
}

/// Returns the `Content-MD5` of a text. Uses Python, because only this server requires MD5.
fn md5(text: &str) -> String {
    let script =
        "import base64,hashlib,sys;print(base64.b64encode(hashlib.md5(sys.argv[1].encode()).digest()).decode())";
    let output = Command::new("python3").args(["-c", script, text]).output().expect("python3 is installed");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
