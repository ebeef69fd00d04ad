//! Credentials that expire during a copy: a registry whose tokens and passwords are valid for five seconds.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use appferry::contract::v1::SynchronizationState;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;

use super::{failure_message, synchronized};
use crate::harness::{
    images::noise,
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    site::{HOME, Site, finished_within},
};

/// Lifetime in milliseconds of every credential that these registries accept.
const LIFE: i64 = 5_000;

fn now() -> i64 {
    appferry::system_clock().now().as_millis()
}

/// Returns whether a text is a timestamp at most [`LIFE`] old. The passwords and tokens of these tests are timestamps.
fn is_fresh(text: &str) -> bool {
    text.parse::<i64>().is_ok_and(|since| (0..LIFE).contains(&(now() - since)))
}

/// Returns the password that a request presents for `bob`.
fn password(request: &ReceivedRequest) -> Option<String> {
    let basic = request.authorization.as_ref()?.strip_prefix("Basic ")?;
    String::from_utf8(STANDARD.decode(basic).ok()?).ok()?.strip_prefix("bob:").map(str::to_owned)
}

fn refuse(challenge: &str) -> Action {
    Action::Answer(StatusCode::UNAUTHORIZED, vec![("www-authenticate", challenge.to_owned())], String::new())
}

/// Starts a registry that accepts unexpired timestamps as passwords.
async fn basic(upstream: &Registry) -> Proxy {
    Proxy::start(upstream.address, |request| {
        if password(request).is_some_and(|password| is_fresh(&password)) {
            Action::Pass
        } else {
            refuse("Basic realm=\"r\"")
        }
    })
    .await
}

/// Starts a registry that accepts unexpired timestamps as tokens, and issues a token for an unexpired password.
/// `tells` sets whether the token response states the lifetime.
async fn bearer(upstream: &Registry, tells: bool) -> Proxy {
    Proxy::start(upstream.address, move |request| {
        if request.path.starts_with("/token") {
            let good = password(request).is_some_and(|password| is_fresh(&password));
            let life = if tells { ",\"expires_in\":5" } else { "" };
            let issued = format!("{{\"token\":\"{}\"{life}}}", now());
            return if good { Action::Answer(StatusCode::OK, Vec::new(), issued) } else { refuse("Basic realm=\"r\"") };
        }
        let token = request.authorization.as_ref().and_then(|value| value.strip_prefix("Bearer "));
        if token.is_some_and(is_fresh) { Action::Pass } else { refuse("Bearer realm=\"/token\",service=\"r\"") }
    })
    .await
}

/// Writes a credential helper that returns the current time as the password, and records each run.
fn helper(directory: &Path) -> PathBuf {
    let path = directory.join("docker-credential-clock");
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\necho run >>{}\nprintf '{{\"Username\":\"bob\",\"Secret\":\"%s\"}}' \"$(date +%s%3N)\"\n",
        directory.join("runs").display()
    );
    fs::write(&path, script).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
    path
}

/// Repeatedly replaces the content of a file by the current time. Each replacement is atomic.
fn rewritten(path: PathBuf) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            fs::write(path.with_extension("new"), format!("{}\n", now())).expect("a file");
            fs::rename(path.with_extension("new"), &path).expect("a file");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_of_five_seconds_last_through_a_copy_of_sixty() {
    let (one, two, three) = (Registry::start().await, Registry::start().await, Registry::start().await);
    let (telling, plain, silent) = (bearer(&one, true).await, basic(&two).await, bearer(&three, false).await);
    let site = Site::new();
    let directory = site.directory.path();
    let helper = format!("credential_helper = \"{}\"", helper(directory).display());
    let (file, runs) = (directory.join("password"), directory.join("runs"));
    fs::write(&file, "0").expect("a file");
    let rewriting = rewritten(file.clone());
    let running = site
        .with("cn-beijing", telling.store("apps"), &helper)
        .with("cn-shanghai", plain.store("apps"), helper)
        .with(
            "cn-shenzhen",
            silent.store("apps"),
            format!("username = \"bob\"\npassword_file = \"{}\"", file.display()),
        )
        .start()
        .await;
    // One blob is sent in chunks, each of which takes longer than a credential lives; the others are sent whole.
    let mut layers: Vec<_> = (1..20).map(|seed| noise(1 << 20, seed)).collect();
    layers.push(noise(101 << 20, 20));
    let app = running.add("a", &layers).await;
    let begun = std::time::Instant::now();
    for proxy in [&telling, &plain, &silent] {
        proxy.hold_uplink(2 << 20);
    }
    let request =
        running.synchronize(&app, &["cn-beijing", "cn-shanghai", "cn-shenzhen"]).await.expect("it is accepted");
    let done = finished_within(&mut running.app_sync().await, &request, Duration::from_secs(300)).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions.iter().all(|region| region.attempt == 1), "{done:?}");
    assert!(begun.elapsed() > Duration::from_secs(55), "it did not take long enough: {:?}", begun.elapsed());
    let runs = fs::read_to_string(runs).expect("it ran").lines().count();
    let lives = usize::try_from(begun.elapsed().as_secs()).expect("a number") + 10;
    assert!((4..2 * lives).contains(&runs), "two regions asked the helper {runs} times in {:?}", begun.elapsed());
    rewriting.abort();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_replaced_is_shown_without_a_restart() {
    let registry = Registry::start().await;
    let password_now = std::sync::Arc::new(std::sync::Mutex::new("one"));
    let expected = std::sync::Arc::clone(&password_now);
    let proxy = Proxy::start(registry.address, move |request| {
        let good = password(request).is_some_and(|password| password == *expected.lock().expect("no panic"));
        if good { Action::Pass } else { refuse("Basic realm=\"r\"") }
    })
    .await;
    let site = Site::new();
    let [file, docker] = ["password", "config.json"].map(|name| site.directory.path().join(name));
    let write = |password: &str| {
        fs::write(&file, password).expect("a file");
        // In a form that `docker login` may write: with capitals and a scheme.
        let auth = STANDARD.encode(format!("bob:{password}"));
        let key = format!("HTTP://{}/v2/", proxy.address);
        let config = serde_json::json!({ "auths": { key: { "auth": auth } } });
        fs::write(&docker, config.to_string()).expect("a file");
    };
    write("one");
    let running = site
        .with("cn-beijing", proxy.store("a"), format!("username = \"bob\"\npassword_file = \"{}\"", file.display()))
        .with("cn-shanghai", proxy.store("b"), format!("docker_config = \"{}\"", docker.display()))
        .start()
        .await;
    let regions = ["cn-beijing", "cn-shanghai"];
    let first = running.add("first", &[noise(100_000, 1)]).await;
    synchronized(&running, &first, &regions).await;

    // The registry's password changes before the files do. The copies fail at once.
    *password_now.lock().expect("no panic") = "two";
    let second = running.add("second", &[noise(100_000, 2)]).await;
    let request = running.synchronize(&second, &regions).await.expect("it is accepted");
    let done = running.finished(&request).await;
    for region in regions {
        let message = failure_message(&done, region);
        assert!(message.contains("refuses the region's credentials") && !message.contains("one"), "{message}");
    }
    write("two");
    synchronized(&running, &second, &regions).await;
    assert!(running.site.image(HOME, "second").exists());
    running.stop().await;
}
