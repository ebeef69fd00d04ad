//! Secrets on disk and in transit: the database reveals no secret, the program refuses a data directory that other
//! users can modify, and the command line sends an unencrypted token only to this machine.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use appferry::contract::v1::SynchronizationState;
use http::{Method, StatusCode};

use super::{answer, hostile};
use crate::harness::{
    images::{self, noise},
    process,
    proxy::Action,
    site::{HOME, Site},
    until,
};

const SECRET: &str = "UPLOAD-SECRET-123";

/// Returns the files of a directory whose content includes a text.
fn holds(directory: &Path, text: &str) -> Vec<String> {
    let files = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let has = |path: &std::path::PathBuf| {
        path.is_file() && fs::read(path).expect("a file").windows(text.len()).any(|part| part == text.as_bytes())
    };
    files.filter(has).map(|path| path.display().to_string()).collect()
}

/// A registry accepts a chunked upload and interrupts it repeatedly. The location of the upload contains a secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_of_an_upload_is_not_in_the_database() {
    let proxy = hostile(|request| match request.method {
        Method::POST => answer(202, vec![("location", format!("/v2/apps/uploads/1?_state={SECRET}"))], ""),
        Method::GET | Method::HEAD => answer(404, vec![], ""),
        _ => Action::Answer(StatusCode::SERVICE_UNAVAILABLE, vec![], String::new()),
    })
    .await;
    let site = Site::new().with("cn-shanghai", proxy.store("apps"), "");
    images::write(&site.image(HOME, "a"), &[noise(65 << 20, 1)]);
    let running = site.start().await;
    running.add("a", &[noise(65 << 20, 1)]).await;
    let id = running.synchronize("a", &["cn-shanghai"]).await.expect("it is accepted");
    let directory = running.site.directory.path().to_owned();
    // Waits until the database contains the location of the upload in encrypted form.
    until("a recorded upload", async || (!holds(&directory, "sealed1:").is_empty()).then_some(())).await;
    let done = running.finished(&id).await;
    assert_eq!(done.state(), SynchronizationState::Failed);
    assert_eq!(holds(&directory, SECRET), Vec::<String>::new());
    let site = running.stop().await;
    for name in ["state.db", "state.db.key", "state.db.lock", "audit.log"] {
        let mode = fs::metadata(site.directory.path().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

fn refused(directory: &Path, says: &str) {
    let output = process::run(directory, &["migrate"]);
    let said = process::stderr(&output);
    assert!(!output.status.success() && said.contains(says), "{said}");
}

#[test]
fn a_data_directory_of_others_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("appferry-data");
    process::stdout(&process::run(directory.path(), &["migrate"]));
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
    for open in [0o777, 0o770, 0o702] {
        mode(&data, open);
        refused(directory.path(), "other users can write to it");
    }
    mode(&data, 0o700);
    mode(&data.join("admin-token"), 0o666);
    refused(directory.path(), "admin-token");
    mode(&data.join("admin-token"), 0o600);
    process::stdout(&process::run(directory.path(), &["migrate"]));
    // The program also refuses a directory or a symbolic link of another user. Only root can change owners.
    if rustix::process::geteuid().is_root() {
        chown(&data, Some(1_234), Some(1_234)).expect("the owner changes");
        refused(directory.path(), "belongs to user 1234");
        chown(&data, Some(0), Some(0)).expect("the owner changes back");
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&data, &elsewhere).expect("it is moved");
        std::os::unix::fs::symlink(&elsewhere, &data).expect("a link");
        process::stdout(&process::run(directory.path(), &["migrate"]));
        std::os::unix::fs::lchown(&data, Some(1_234), Some(1_234)).expect("the owner changes");
        refused(directory.path(), "belongs to user 1234");
    }
}

#[test]
fn a_token_goes_in_clear_to_this_machine_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    fs::write(&token, "a-token").expect("a token");
    let file = token.to_str().expect("text");
    for endpoint in ["http://192.0.2.1:1", "http://localhost.example:1", "HTTP://192.0.2.1:1"] {
        let output = process::run(directory.path(), &["list", "--endpoint", endpoint, "--token-file", file]);
        assert_eq!(output.status.code(), Some(2), "{endpoint}: {output:?}");
        let mut command = process::command(directory.path(), &["list", "--endpoint", endpoint]);
        let output = command.env("APPFERRY_TOKEN", "a-token").output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{endpoint}: {output:?}");
        assert!(!process::stderr(&output).contains("a-token"));
    }
    for endpoint in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
        let output = process::run(directory.path(), &["list", "--endpoint", endpoint, "--token-file", file]);
        assert_eq!(output.status.code(), Some(1), "no service responds: {endpoint}: {output:?}");
    }
}
