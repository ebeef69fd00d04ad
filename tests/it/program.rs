//! The command line at a terminal: the first start, the commands, their output, and their exit status.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path};

use futures_util::StreamExt as _;
use object_store::ObjectStore as _;
use serde_json::Value;

use crate::harness::{
    address::free_address,
    bucket::{BUCKET, Bucket},
    images,
    process::{self, Served, run, stderr, stdout},
    registry::Registry,
    site::{HOME, Site},
    until,
};

/// Starts a service with the default database in a new directory, on a free port.
async fn first_start() -> (tempfile::TempDir, Served, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = process::command(directory.path(), &["serve"]);
    command.env("APPFERRY_SERVER__LISTEN", "127.0.0.1:0");
    let served = Served::start(command, directory.path().join("log")).await;
    let endpoint = format!("http://{}", served.address);
    (directory, served, endpoint)
}

/// Runs a client command against the service at `endpoint`.
fn client(directory: &Path, endpoint: &str, arguments: &[&str]) -> std::process::Output {
    process::command(directory, arguments).env("APPFERRY_ENDPOINT", endpoint).output().expect("the program runs")
}

/// A failed write to standard error does not change the exit status.
#[tokio::test]
async fn a_command_whose_errors_nobody_reads_ends_as_ever() {
    let (directory, _served, endpoint) = first_start().await;
    let status = |arguments: &[&str], errors: std::process::Stdio| {
        let mut command = process::command(directory.path(), arguments);
        command.env("APPFERRY_ENDPOINT", &endpoint).stdout(std::process::Stdio::null()).stderr(errors);
        command.status().expect("the program runs").code()
    };
    let full = || fs::File::options().write(true).open("/dev/full").expect("it is there").into();
    fs::write(directory.path().join("disk"), "a disk").expect("a file");
    assert_eq!(status(&["image", "add", "--id", "a", "--name", "a", "--file", "disk"], full()), Some(0));
    assert_eq!(status(&["sync", "a", "--wait"], full()), Some(0));
    assert_eq!(
        status(&["sync", "no-such-image"], full()),
        status(&["sync", "no-such-image"], std::process::Stdio::null())
    );
}

/// Asserts the exit status, and that the error message contains all texts.
fn failed(output: &std::process::Output, code: i32, says: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(output.stdout, b"", "an error goes to standard error");
    for text in says {
        assert!(stderr(output).contains(text), "{:?} does not say {text:?}", stderr(output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_needs_nothing_and_says_what_to_type_next() {
    let (directory, served, endpoint) = first_start().await;
    let token = directory.path().join("appferry-data/admin-token");
    assert_eq!(fs::metadata(&token).expect("a token").permissions().mode() & 0o777, 0o600);
    let log = until("the next command to be printed", async || {
        let log = fs::read_to_string(&served.log).expect("a log");
        (log.contains("appferry image add") && log.contains("appferry-data/admin-token")).then_some(log)
    })
    .await;
    assert!(!log.contains(fs::read_to_string(&token).expect("a token").trim()), "the token itself is not logged");

    let regions = stdout(&client(directory.path(), &endpoint, &["regions"]));
    let rows: Vec<Vec<&str>> = regions.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            vec!["REGION", "ROLE", "STORE"],
            vec!["cn-beijing", "dir"],
            vec!["cn-hangzhou", "home", "dir"],
            vec!["cn-shanghai", "dir"],
            vec!["cn-shenzhen", "dir"],
        ]
    );
    // Only one process at a time can use a data directory, and a later process has the same token.
    failed(&run(directory.path(), &["serve"]), 1, &["is in use by another appferry"]);
    let before = fs::read_to_string(&token).expect("a token");
    drop(served);
    let mut command = process::command(directory.path(), &["serve"]);
    command.env("APPFERRY_SERVER__LISTEN", "127.0.0.1:0");
    let _served = Served::start(command, directory.path().join("log-2")).await;
    assert_eq!(fs::read_to_string(&token).expect("a token"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_added_synchronized_followed_listed_and_removed() {
    let (directory, _served, endpoint) = first_start().await;
    let command = |arguments: &[&str]| client(directory.path(), &endpoint, arguments);
    fs::write(directory.path().join("disk.img"), images::noise(300_000, 1)).expect("a disk");

    let added = command(&["image", "add", "--name", "solver", "--image-version", "1.2", "--file", "disk.img"]);
    let app = stdout(&added).trim().to_owned();
    assert!(app.starts_with("ci-vm-") && app.len() == "ci-vm-".len() + 12, "{app}");
    let again = command(&["image", "add", "--name", "solver", "--file", "disk.img", "--id", &app]);
    failed(&again, 1, &["ImageAlreadyExists", &app]);
    fs::write(directory.path().join("other.img"), images::noise(300_000, 2)).expect("a disk");

    let synced = command(&["sync", &app, "--wait"]);
    let output_text = stdout(&synced);
    assert!(output_text.contains("SUCCEEDED") && output_text.matches("AVAILABLE").count() == 3, "{output_text}");
    let lines = stderr(&synced);
    assert!(lines.contains("cn-beijing") && lines.contains("AVAILABLE, "), "plain lines: {lines}");
    assert!(!lines.contains('\r') && !lines.contains('\x1b'), "no bars where there is no terminal: {lines:?}");

    let request_id = output_text.split_whitespace().next().expect("the id").to_owned();
    let status = stdout(&command(&["status", &request_id]));
    assert!(status.contains(&request_id) && status.contains("SUCCEEDED"), "{status}");
    let watched = stdout(&command(&["status", &request_id, "--watch", "--json"]));
    let last: Value = serde_json::from_str(watched.lines().last().expect("a line")).expect("JSON and nothing else");
    assert_eq!(last["state"], "SYNCHRONIZATION_STATE_SUCCEEDED");
    assert_eq!(last["regions"].as_array().map(Vec::len), Some(3));

    let json = |arguments: &[&str]| -> Value {
        let output = command(arguments);
        serde_json::from_str(&stdout(&output)).expect("JSON and nothing else")
    };
    assert_eq!(json(&["image", "show", &app, "--json"])["name"], "solver");
    assert_eq!(json(&["image", "list", "--json"])["imageVersion"], "1.2");
    assert_eq!(json(&["list", "--json"])["requestId"], request_id.as_str());
    assert_eq!(json(&["status", &request_id, "--json"])["appId"], app.as_str());
    assert_eq!(json(&["cancel", &request_id, "--json"])["state"], "SYNCHRONIZATION_STATE_SUCCEEDED");
    let all = json(&["sync", &app, "--wait", "--json"]);
    assert_eq!(
        (&all["state"], all["regions"].as_array().map(Vec::len)),
        (&"SYNCHRONIZATION_STATE_SUCCEEDED".into(), Some(0))
    );
    assert_eq!(stdout(&command(&["regions", "--json"])).lines().count(), 4);
    assert!(stdout(&command(&["list", "--state", "succeeded"])).contains(&request_id));
    assert_eq!(stdout(&command(&["list", "--state", "failed"])).lines().count(), 1, "the heading");

    failed(&command(&["sync", &app, "--to", "cn-beijing"]), 1, &["ImageAlreadyExists", "cn-beijing", "request "]);
    failed(&command(&["sync", &app, "--to", "cn-nowhere"]), 1, &["InvalidParams", "target_region_ids", "cn-nowhere"]);
    failed(&command(&["sync", "nobody-knows-it"]), 1, &["ImageNotFound", "nobody-knows-it"]);
    failed(&command(&["status", "nonsense"]), 1, &["InvalidParams", "request_id", "nonsense"]);
    failed(
        &command(&["list", "--state", "lost"]),
        2,
        &["--state lost: expected running, succeeded, failed or canceled"],
    );
    failed(&command(&["sync"]), 2, &["APP_ID"]);
    failed(&command(&["image", "add", "--name", "n"]), 2, &["--file", "--oci"]);
    failed(&command(&["image", "add", "--name", "n", "--file", "not-there"]), 1, &["not-there", "No such file"]);
    failed(&command(&["image", "add", "--name", "n", "--file", "disk.img", "--id", ".."]), 2, &["--id", "\"..\""]);
    failed(&command(&["image", "add", "--name", "n", "--oci", "disk.img:x"]), 1, &["disk.img"]);

    stdout(&command(&["image", "remove", &app]));
    failed(&command(&["image", "show", &app]), 1, &["ImageNotFound"]);
    // The removed image still has its bytes in the store, so that another image cannot take its id.
    let taken = command(&["image", "add", "--name", "other", "--file", "other.img", "--id", &app]);
    failed(&taken, 1, &["there is another image called", &app]);
    let same = command(&["image", "add", "--name", "solver", "--file", "disk.img", "--id", &app]);
    assert_eq!(stdout(&same).trim(), app);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronization_that_fails_fails_its_command() {
    let (directory, _served, endpoint) = first_start().await;
    fs::write(directory.path().join("disk.img"), images::noise(3_000, 1)).expect("a disk");
    let added = client(directory.path(), &endpoint, &["image", "add", "--name", "n", "--file", "disk.img"]);
    let app = stdout(&added).trim().to_owned();
    let region = directory.path().join("appferry-data/regions/cn-beijing");
    fs::create_dir_all(region.join(&app)).expect("a directory");
    fs::write(region.join(&app).join("blobs"), "in the way").expect("a file");
    let output = client(directory.path(), &endpoint, &["sync", &app, "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output_text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output_text.contains("FAILED")
            && output_text.matches("AVAILABLE").count() == 2
            && output_text.contains("blobs"),
        "{output_text}"
    );
    assert!(stderr(&output).contains("ended as FAILED"), "{}", stderr(&output));
}

#[test]
fn a_client_without_a_service_or_a_token_is_told_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let free = free_address();
    let endpoint = format!("http://{free}");
    failed(&client(directory.path(), &endpoint, &["regions"]), 1, &["failed to connect to", &endpoint]);
    failed(&client(directory.path(), "no url", &["regions"]), 2, &["--endpoint no url"]);
    failed(&client(directory.path(), &endpoint, &["health"]), 1, &["failed to connect to"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_missing_or_wrong_is_told_so() {
    let (directory, _served, endpoint) = first_start().await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    failed(&client(elsewhere.path(), &endpoint, &["regions"]), 1, &["no token", "--token-file", "APPFERRY_TOKEN"]);
    fs::write(elsewhere.path().join("token"), "a-guess").expect("a file");
    let guessed = client(elsewhere.path(), &endpoint, &["regions", "--token-file", "token"]);
    failed(&guessed, 1, &["InvalidAccessKeyId.NotFound"]);
    assert!(!stderr(&guessed).contains("a-guess"));
    let token = fs::read_to_string(directory.path().join("appferry-data/admin-token")).expect("a token");
    let mut command = process::command(elsewhere.path(), &["regions"]);
    command.env("APPFERRY_ENDPOINT", &endpoint).env("APPFERRY_TOKEN", token);
    stdout(&command.output().expect("it runs"));
    assert_eq!(stdout(&client(elsewhere.path(), &endpoint, &["health"])), "SERVING\n");
}

#[test]
fn a_configuration_that_can_t_be_used_is_refused_with_the_key() {
    let site = Site::new();
    let path = site.directory.path().join("appferry.toml");
    let good = site.config();
    for (text, says) in [
        (format!("{good}\n[servr]\nlisten = \"x\"\n"), &["servr"][..]),
        (good.replace("[database]\nurl", "[database]\nlru"), &["lru", "url"]),
        (format!("{good}\nunparsable"), &["TOML parse error"]),
        (good.replace("127.0.0.1:0", "somewhere"), &["server.listen", "somewhere"]),
        (good.replace("127.0.0.1:0", "0.0.0.0:0"), &["server.listen: 0.0.0.0:0", "server.allow_plaintext = true"]),
        (good.replace("region = \"cn-hangzhou\"", "region = \"cn-nowhere\""), &["home.region", "cn-nowhere"]),
        (good.replace("sqlite://", "oracle://"), &["database.url", "oracle"]),
        (
            good.replace("ehpc:SynchronizeApp\"],", "ehpc:SynchronizeApp\"],\"Condition\":{},"),
            &["policy[1].document", "Condition"],
        ),
    ] {
        fs::write(&path, &text).expect("it is written");
        let refused = run(site.directory.path(), &["serve", "--config", "appferry.toml"]);
        failed(&refused, 1, says);
    }
    failed(&run(site.directory.path(), &["serve", "--config", "not-there.toml"]), 1, &["not-there.toml"]);
    fs::write(&path, &good).expect("it is written");
    let mut command = process::command(site.directory.path(), &["serve", "--config", "appferry.toml"]);
    let refused = command.env("APPFERRY_WORKER__LEASE_MS", "soon").output().expect("it runs");
    failed(&refused, 1, &["lease_ms", "soon"]);
}

#[test]
fn a_schema_of_another_version_and_a_port_in_use_are_told() {
    let site = Site::new();
    let held = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("an address").to_string();
    let config = site.config().replace("127.0.0.1:0", &address);
    fs::write(site.directory.path().join("appferry.toml"), config).expect("it is written");
    let serve = || {
        let mut command = process::command(site.directory.path(), &["serve", "--config", "appferry.toml"]);
        command.env("APPFERRY_SERVER__LISTEN", "127.0.0.1:0").output().expect("it runs")
    };
    failed(&serve(), 1, &["steps behind; run `appferry migrate`"]);
    assert!(
        stdout(&run(site.directory.path(), &["migrate", "--config", "appferry.toml"])).contains("migration applied")
    );
    let in_use = run(site.directory.path(), &["serve", "--config", "appferry.toml"]);
    failed(&in_use, 1, &["server.listen", &address, "in use"]);

    let database = format!("sqlite://{}", site.file().display());
    let newer = async {
        use sea_orm::ConnectionTrait as _;
        let db = sea_orm::Database::connect(database).await.expect("a connection");
        db.execute_unprepared("INSERT INTO seaql_migrations VALUES ('m20991231_000001_from_the_future', 1)").await
    };
    tokio::runtime::Runtime::new().expect("a runtime").block_on(newer).expect("it is written");
    failed(&serve(), 1, &["is newer than this version"]);
}

#[test]
fn a_data_directory_of_another_version_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("appferry-data")).expect("a directory");
    fs::write(directory.path().join("appferry-data/format"), "99").expect("it is written");
    failed(&run(directory.path(), &["serve"]), 1, &["has the format \"99\"", "another version"]);
    assert!(!directory.path().join("appferry-data/state.db").exists());
}

#[test]
fn the_demo_carries_an_image_everywhere_and_verifies_it() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("disk.img"), images::noise(2 << 20, 1)).expect("a disk");
    let output_text = stdout(&run(directory.path(), &["demo", "--exit", "--image", "disk.img"]));
    assert!(output_text.contains("SUCCEEDED"), "{output_text}");
    let regions = directory.path().join("appferry-data/regions");
    let app =
        output_text.split_whitespace().find(|word| word.starts_with("ci-vm-")).expect("the id").trim_end_matches(';');
    let roots: std::collections::BTreeSet<_> = ["cn-hangzhou", "cn-shanghai", "cn-beijing", "cn-shenzhen"]
        .iter()
        .map(|region| images::verify(&regions.join(region).join(app)))
        .collect();
    assert_eq!(roots.len(), 1);
    assert_eq!(output_text.matches("verified ").count(), 4, "{output_text}");
    let refused = run(directory.path(), &["demo", "--exit", "--image", "not-there"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("not-there: No such file"), "{}", stderr(&refused));
}

#[test]
fn shells_and_readers_of_manuals_are_told_of_every_command() {
    let directory = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let text = stdout(&run(directory.path(), &["completions", shell]));
        assert!(
            ["synchronization", "client-token", "vm-image"].iter().all(|word| text.contains(word)) || shell == "bash"
        );
    }
    // Bash parses the script and completes with it.
    let script = "source <(\"$0\" completions bash); COMP_WORDS=(appferry image a); COMP_CWORD=2; _appferry appferry a image; \
                  echo \"${COMPREPLY[@]}\"";
    let completed =
        std::process::Command::new("bash").args(["-c", script, process::APPFERRY]).output().expect("bash runs");
    assert_eq!(stdout(&completed).trim(), "add");
    failed(&run(directory.path(), &["completions", "tcsh"]), 2, &["tcsh"]);

    fs::create_dir(directory.path().join("man")).expect("a directory");
    stdout(&run(directory.path(), &["man", "man"]));
    for page in ["appferry.1", "appferry-sync.1", "appferry-image-add.1"] {
        let text = fs::read_to_string(directory.path().join("man").join(page)).expect("a page");
        assert!(text.contains(".TH") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    failed(&run(directory.path(), &["man", "nowhere"]), 1, &["nowhere"]);
}

/// Returns the checks of `doctor` that failed, each with its message and its hint.
fn failed_checks(output: &std::process::Output) -> Vec<(String, String)> {
    let text = stdout_of(output);
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let wrong = lines.filter(|line| line["ok"] == false).map(|line| {
        assert!(!line["mend"].as_str().expect("a hint").is_empty());
        (line["check"].as_str().expect("a check").to_owned(), line["detail"].as_str().expect("text").to_owned())
    });
    wrong.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_finds_what_is_wrong_and_says_what_to_mend() {
    // While a service runs, every check succeeds.
    let (directory, served, _) = first_start().await;
    let output_text = stdout(&run(directory.path(), &["doctor"]));
    assert!(
        output_text.lines().count() >= 7 && output_text.lines().all(|line| line.starts_with("ok ")),
        "{output_text}"
    );
    assert!(output_text.contains("free"), "{output_text}");
    drop(served);

    let (registry, bucket) = (Registry::start().await, Bucket::start().await);
    let site = Site::new().with("cn-shanghai", format!("s3://{BUCKET}/images"), bucket.keys(bucket.address)).with(
        "cn-shenzhen",
        registry.store("apps"),
        "",
    );
    let config = site.write_config();
    let path = config.to_str().expect("text");
    let doctor = |more: &[(&str, &str)]| {
        let mut command = process::command(site.directory.path(), &["doctor", "--json", "--config", path]);
        command.envs(more.iter().copied()).output().expect("the program runs")
    };
    let output = doctor(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let wrong = failed_checks(&output);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].0 == "database" && wrong[0].1.contains("appferry migrate"), "{wrong:?}");

    process::migrate(&config);
    let output = doctor(&[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(failed_checks(&output), []);
    // No probe leaves anything behind.
    assert_eq!(registry.unfinished(), Vec::<String>::new());
    assert_eq!(bucket.objects().list(None).count().await, 0);
    for region in [HOME, "cn-beijing"] {
        assert_eq!(fs::read_dir(site.region(region)).expect("a directory").count(), 0);
    }

    fs::remove_dir(site.region("cn-beijing")).expect("it was there");
    fs::write(bucket.secret(), "another-secret").expect("a secret");
    drop(registry);
    let output = doctor(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let wrong = failed_checks(&output);
    let checks: Vec<&str> = wrong.iter().map(|(check, _)| check.as_str()).collect();
    assert_eq!(checks, ["cn-beijing", "cn-shanghai", "cn-shenzhen", "collector"], "{wrong:?}");
    assert!(stderr(&output).contains("found 4 problems"), "{output:?}");
    for ((_, detail), says) in wrong.iter().zip(["does not exist", "403", "refused", "refused"]) {
        assert!(detail.contains(says) && !detail.contains("another-secret"), "{detail}");
    }
    let output = run(site.directory.path(), &["doctor", "--config", "nowhere.toml"]);
    assert!(output.status.code() == Some(1) && stdout_of(&output).contains("WRONG   configuration"), "{output:?}");
}

fn stdout_of(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}
