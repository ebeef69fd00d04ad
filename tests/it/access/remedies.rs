//! Error messages suggest a remedy, and the remedy works: each test applies it.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
};

use appferry::config::Config;

use super::{failure_message, synchronized};
use crate::harness::{
    address::free_address,
    images::{self, noise},
    process,
    recording_proxy::RecordingProxy,
    registry::{Registry, asks_for_password, skopeo},
    site::{ADMIN, HOME, Running, Site},
};

/// Generates a certificate and its key with openssl, valid for two days from `time`.
pub fn certificate(directory: &Path, name: &str, time: &str) -> [String; 2] {
    let [certificate, key] =
        ["pem", "key"].map(|end| directory.join(format!("{name}-{time}.{end}")).display().to_string());
    let mut openssl = Command::new("faketime");
    openssl.args([
        time,
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]);
    openssl.args(["-days", "2", "-keyout", &key, "-out", &certificate, "-subj", &format!("/CN={name}")]);
    let output =
        openssl.args(["-addext", &format!("subjectAltName=DNS:{name}")]).output().expect("openssl is installed");
    assert!(output.status.success(), "{output:?}");
    let text =
        Command::new("openssl").args(["x509", "-noout", "-text", "-in", &certificate]).output().expect("it runs");
    assert!(
        String::from_utf8_lossy(&text.stdout).contains("CA:TRUE"),
        "by default, openssl makes a certificate of an authority"
    );
    [certificate, key]
}

/// Starts a registry with TLS that states `says` as its own address.
async fn registry([certificate, key]: &[String; 2], says: &str) -> Registry {
    Registry::start_with(&format!("  host: {says}\n  tls:\n    certificate: {certificate}\n    key: {key}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_does_not_know_of_its_tls_is_asked_with_it() {
    let mut site = Site::new();
    let files = certificate(site.directory.path(), "one.apps.test", "now");
    let other = certificate(site.directory.path(), "two.apps.test", "now");
    // A proxy that terminates TLS may leave the registry unaware of it.
    let (one, two) =
        (registry(&files, "http://one.apps.test").await, registry(&other, "http://elsewhere.apps.test").await);
    let recording_proxy =
        RecordingProxy::start(&[("one.apps.test:443", one.address), ("two.apps.test:443", two.address)]).await;
    let trusted = |file: &str| format!("ca_file = \"{file}\"\nalso_hosts = [\"elsewhere.apps.test\"]");
    site.more = format!("[network]\n{}\nproxy_resolves = true\n", recording_proxy.key());
    let running = site
        .with("cn-beijing", "registry+https://one.apps.test/apps", trusted(&files[0]))
        .with("cn-shanghai", "registry+https://two.apps.test/apps", trusted(&other[0]))
        .start()
        .await;
    let app = running.add("a", &[noise(200_000, 1)]).await;
    synchronized(&running, &app, &["cn-beijing"]).await;
    assert!(recording_proxy.requests().iter().all(|request| request.method == "CONNECT"), "nothing goes without TLS");

    let request = running.synchronize(&app, &["cn-shanghai"]).await.expect("it is accepted");
    let message = failure_message(&running.finished(&request).await, "cn-shanghai");
    assert!(
        message.contains("http://elsewhere.apps.test, without TLS") && message.contains("a path alone"),
        "{message}"
    );
    // The registry returns a relative location.
    let reconfigured = Registry::start_with(&format!(
        "  relativeurls: true\n  tls:\n    certificate: {}\n    key: {}",
        other[0], other[1]
    ))
    .await;
    let mut site = running.stop().await;
    let recording_proxy = RecordingProxy::start(&[("two.apps.test:443", reconfigured.address)]).await;
    site.more = format!("[network]\n{}\nproxy_resolves = true\n", recording_proxy.key());
    let running = site.start().await;
    synchronized(&running, &app, &["cn-shanghai"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_the_file_is_taken_for_its_name_and_its_time() {
    let mut site = Site::new();
    let directory = site.directory.path();
    let (named, old) =
        (certificate(directory, "right.apps.test", "now"), certificate(directory, "old.apps.test", "2020-01-01"));
    let (one, two) = (registry(&named, "https://right.apps.test").await, registry(&old, "https://old.apps.test").await);
    let recording_proxy = RecordingProxy::start(&[
        ("right.apps.test:443", one.address),
        ("wrong.apps.test:443", one.address),
        ("old.apps.test:443", two.address),
    ])
    .await;
    site.more = format!("[network]\n{}\nproxy_resolves = true\n", recording_proxy.key());
    site.worker = site.worker.replace("attempts = 3", "attempts = 1");
    let store = |host: &str| format!("registry+https://{host}.apps.test/apps");
    let trusted = |file: &str| format!("ca_file = \"{file}\"");
    let running = site
        .with("cn-beijing", store("right"), trusted(&named[0]))
        .with("cn-shanghai", store("wrong"), trusted(&named[0]))
        .with("cn-shenzhen", store("old"), trusted(&old[0]))
        .start()
        .await;
    let app = running.add("a", &[noise(200_000, 1)]).await;
    synchronized(&running, &app, &["cn-beijing"]).await;
    let request = running.synchronize(&app, &["cn-shanghai", "cn-shenzhen"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    for (region, why) in [("cn-shanghai", "not valid for name"), ("cn-shenzhen", "Expired")] {
        let message = failure_message(&done, region);
        assert!(message.contains(why), "{message}");
    }
    running.stop().await;
}

/// The message names the cause: a proxy that is down, requires a login or rejects the destination; the store; or
/// neither of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_the_key_of_the_proxy_that_is_in_the_way() {
    let (lost, shut) = (RecordingProxy::start(&[]).await, RecordingProxy::start_answering(&[], "403 Forbidden").await);
    let asking = RecordingProxy::start_answering(&[], "407 Proxy Authentication Required").await;
    let (away, registry) = (free_address(), Registry::start().await);
    let open = RecordingProxy::start(&[("odd.apps.test:443", registry.address)]).await;
    let store = |host: &str| format!("registry+https://{host}.apps.test/apps");
    let proxy = |at: SocketAddr| format!("proxy = \"http://{at}\"");
    let mut site = Site::new()
        .with("cn-beijing", store("gone"), "")
        .with("cn-shanghai", store("away"), proxy(away))
        .with("cn-shenzhen", store("shut"), proxy(shut.address));
    let more = [("asking", asking.address), ("odd", open.address)]
        .map(|(id, at)| format!("[[region]]\nid = \"{id}\"\nstore = \"{}\"\n{}\n", store(id), proxy(at)));
    site.more = format!("[network]\n{}\nproxy_resolves = true\n{}", lost.key(), more.concat());
    let config = site.write_config().display().to_string();
    process::stdout(&process::run(site.directory.path(), &["migrate", "--config", &config]));
    let directory = site.directory.path().to_owned();
    let doctor = move || process::run(&directory, &["doctor", "--json", "--config", &config]);
    let said = tokio::task::spawn_blocking(doctor).await.expect("it runs");
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let said = String::from_utf8(said.stdout).expect("text");
    let of = |region: &str| -> String {
        let lines = said.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let line = lines.into_iter().find(|line| line["check"] == region).expect("a line");
        assert_eq!(line["ok"], false, "{line}");
        line["mend"].as_str().expect("what to do").to_owned()
    };
    for (region, told) in [
        ("cn-beijing", ["network.proxy: ", "does not reach gone.apps.test (502)"]),
        ("cn-shanghai", ["region[2].proxy: ", "can't be reached (Connection refused"]),
        ("cn-shenzhen", ["region[3].proxy: ", "passes nothing on to shut.apps.test (403)"]),
        ("asking", ["region[4].proxy: ", "wants a name and a password (407)"]),
    ] {
        let mend = of(region);
        assert!(mend.contains(region) && told.iter().all(|told| mend.contains(told)), "{region}: {mend}");
    }
    // The registry at that address has no TLS, so that the failure is not due to the proxy.
    let mend = of("odd");
    assert!(!mend.contains("proxy") && mend.contains("check that the store is running"), "{mend}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_config_without_the_registry_is_filled_as_is_told() {
    let site = Site::new();
    let auth = asks_for_password(site.directory.path());
    let registry = Registry::start_with(&auth).await;
    let file = site.directory.path().join("config.json");
    fs::write(&file, "{}").expect("a file");
    let (file, host) = (file.display().to_string(), registry.address.to_string());
    let site = site.with("cn-beijing", registry.store("apps"), format!("docker_config = \"{file}\""));
    let refused = Config::load(&site.write_config()).expect_err("no credentials").to_string();
    let command = format!("skopeo login --authfile {file} {host}");
    assert!(refused.contains("docker_config") && refused.contains(&format!("`{command}`")), "{refused}");
    let mut arguments: Vec<&str> = command.split(' ').skip(1).collect();
    arguments.extend(["--tls-verify=false", "--username", "bob", "--password", "the-stores-secret"]);
    skopeo(&arguments);
    let running = site.start().await;
    let app = running.add("a", &[noise(200_000, 1)]).await;
    synchronized(&running, &app, &["cn-beijing"]).await;
    running.stop().await;
}

fn appferry(running: &Running, arguments: &[&str]) -> Output {
    let mut command = process::command(running.site.directory.path(), arguments);
    command.args(["--endpoint", &format!("http://{}", running.address)]).env("APPFERRY_TOKEN", ADMIN);
    command.output().expect("the program runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_damaged_or_missing_is_made_good_by_what_is_told() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(200_000, 1)]).await;
    synchronized(&running, &app, &["cn-beijing"]).await;
    let layer = images::layers(&running.site.image(HOME, "a")).remove(0);
    fs::write(images::blob_path(&running.site.image("cn-beijing", "a"), &layer), "spoiled").expect("a file");
    let verified = appferry(&running, &["image", "verify", "a", "--region", "cn-beijing", "--region", "cn-shanghai"]);
    let text = process::stderr(&verified);
    assert_eq!(verified.status.code(), Some(1), "{text}");
    let commands: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    assert_eq!(commands, ["appferry sync a --to cn-shanghai", "appferry sync a --to cn-beijing"], "{text}");
    for command in commands {
        let mut arguments: Vec<&str> = command.split(' ').skip(1).collect();
        arguments.push("--wait");
        process::stdout(&appferry(&running, &arguments));
    }
    process::stdout(&appferry(
        &running,
        &["image", "verify", "a", "--region", "cn-beijing", "--region", "cn-shanghai"],
    ));
    running.stop().await;
}
