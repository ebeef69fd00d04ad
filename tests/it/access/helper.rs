//! A real credential helper: docker-credential-pass, which stores passwords with `pass` and `gpg`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use appferry::contract::v1::SynchronizationState;
use serde_json::json;

use super::failure_message;
use crate::harness::{
    images::{self, noise},
    process::{self, Served},
    registry::{Registry, asks_for_password},
    site::{ADMIN, HOME, Site, app_sync, ask, finished, images_client, register},
};

/// A GnuPG key ring and a password store. Stops `gpg-agent` when dropped.
struct Keeper {
    directory: tempfile::TempDir,
}

impl Keeper {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::Builder::new().prefix("keeper-").tempdir().expect("a directory");
        let keeper = Self { directory };
        fs::create_dir(keeper.path("gnupg")).expect("a directory");
        fs::set_permissions(keeper.path("gnupg"), fs::Permissions::from_mode(0o700)).expect("a directory");
        keeper.run("gpg", &["--batch", "--passphrase", "", "--quick-generate-key", "appferry@example.com"], "");
        keeper.run("pass", &["init", "appferry@example.com"], "");
        keeper
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [("GNUPGHOME", self.path("gnupg")), ("PASSWORD_STORE_DIR", self.path("passwords"))]
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(self.variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} (scripts/tools): {error}"));
        child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    }

    fn store(&self, server: &str, password: &str) {
        let entry = json!({ "ServerURL": server, "Username": "bob", "Secret": password });
        self.run("docker-credential-pass", &["store"], &entry.to_string());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut end = Command::new("gpgconf");
        let _ = end.args(["--kill", "all"]).env("GNUPGHOME", self.path("gnupg")).status();
    }
}

async fn serve(config: &Path, keeper: &Keeper) -> Served {
    let directory = config.parent().expect("a directory");
    let path = config.to_str().expect("text");
    process::migrate(config);
    let mut command = process::command(directory, &["serve", "--config", path]);
    command.envs(keeper.variables());
    Served::start(command, directory.join("log")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_docker_knows_hands_out_what_it_keeps() {
    let keeper = Keeper::new();
    let site = Site::new();
    let auth = asks_for_password(site.directory.path());
    let (named, configured) = (Registry::start_with(&auth).await, Registry::start_with(&auth).await);
    let docker = site.directory.path().join("config.json");
    fs::write(&docker, json!({ "credHelpers": { configured.address.to_string(): "pass" } }).to_string())
        .expect("a file");
    let docker = docker.display();
    let variables = "credential_helper_env = [\"GNUPGHOME\", \"PASSWORD_STORE_DIR\"]";
    let site = site.with("cn-beijing", named.store("apps"), format!("credential_helper = \"pass\"\n{variables}")).with(
        "cn-shanghai",
        configured.store("apps"),
        format!("docker_config = \"{docker}\"\n{variables}"),
    );
    images::write(&site.image(HOME, "a"), &[noise(200_000, 1)]);
    let served = serve(&site.write_config(), &keeper).await;
    let mut client = app_sync(served.address, Some(ADMIN)).await;
    register(&mut images_client(served.address, Some(ADMIN)).await, "a").await;
    let mut synchronized = async || {
        let request = client.synchronize_app(ask("a", &["cn-beijing", "cn-shanghai"])).await.expect("it is accepted");
        finished(&mut client, &request.into_inner().request_id).await
    };
    // Takes the step that the message suggests.
    let done = synchronized().await;
    for (region, registry) in [("cn-beijing", &named), ("cn-shanghai", &configured)] {
        let message = failure_message(&done, region);
        let helped = format!("docker-credential-pass has no credentials for {}; log in to it", registry.address);
        assert!(message.contains(&helped), "{message}");
        keeper.store(&registry.address.to_string(), "the-stores-secret");
    }
    let done = synchronized().await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    let log = fs::read_to_string(&served.log).expect("a log");
    assert!(!log.contains("the-stores-secret"));
}
