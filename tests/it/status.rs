//! The status page in a browser: live progress, operation by keyboard alone, and authorization.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{
    address::free_address,
    images::{self, noise},
    process::Served,
    site::{self, HOME, READER, SYNC_ONLY, Site, app_sync, ask, images_client},
};

/// A browser with the open page.
struct Browser {
    child: Child,
    /// The standard input of the script, which closes the browser when this input ends.
    steps: Option<ChildStdin>,
    page: BufReader<ChildStdout>,
    url: String,
}

impl Browser {
    fn start(url: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join(".tools/bin/python"))
            .arg(root.join("tests/it/harness/browser.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs: source scripts/tools");
        let mut steps = child.stdin.take().expect("it is piped");
        let page = BufReader::new(child.stdout.take().expect("it is piped"));
        writeln!(steps, "{}", json!({ "url": url })).expect("it reads");
        Self { child, steps: Some(steps), page, url: url.to_owned() }
    }

    /// Executes a step, and returns the page's state after it.
    fn step(&mut self, step: &Value) -> Value {
        tokio::task::block_in_place(|| {
            writeln!(self.steps.as_mut().expect("it is open"), "{step}").expect("it reads");
            let mut line = String::new();
            self.page.read_line(&mut line).expect("it answers");
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{step} at {}: {error}: {line:?}", self.url))
        })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.steps.take());
        self.child.wait().ok();
    }
}

/// Starts a service with its status page and without workers, which are started separately.
async fn serve(site: &mut Site, more: &str) -> (Served, String) {
    let http = free_address();
    site.more = format!("[http]\nlisten = \"{http}\"\n{more}");
    (site.serve().await, format!("http://{http}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_what_is_where_as_it_happens_and_by_the_keyboard() {
    let site = Site::new();
    // The copy is slow enough for its progress to be visible.
    let store = format!("dir://{}", site.region("cn-beijing").display());
    let mut site = site.with("cn-beijing", store, "ingress_bytes_per_second = 1500000");
    images::write(&site.image(HOME, "gromacs-2026"), &[noise(12_000_000, 1)]);
    images::write(&site.image(HOME, "lammps-2026"), &[noise(1_000, 2)]);
    let (served, url) = serve(&mut site, "").await;
    let mut images = images_client(served.address, Some(site::ADMIN)).await;
    for name in ["gromacs-2026", "lammps-2026"] {
        site::register(&mut images, name).await;
    }
    let mut browser = Browser::start(&url);
    let refused = browser.step(&json!({ "do": "enter", "token": "a-guess", "see": ["InvalidAccessKeyId", "Sign in"] }));
    assert!(!refused["text"].as_str().expect("text").contains("a-guess"), "{refused}");
    let page = browser
        .step(&json!({ "do": "enter", "token": site::ADMIN, "see": ["Live", "gromacs-2026", "cn-beijing", "AVAILABLE (home)"] }));
    assert!(!page["text"].as_str().expect("text").contains("COPYING"), "{page}");

    // The page shows the new synchronization without any input.
    fs::remove_dir(site.region("cn-shenzhen")).expect("it was there");
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let regions = ["cn-beijing", "cn-shanghai", "cn-shenzhen"];
    let id =
        client.synchronize_app(ask("gromacs-2026", &regions)).await.expect("it is accepted").into_inner().request_id;
    browser.step(&json!({ "do": "see", "see": [&id, "RUNNING"] }));
    browser.step(&json!({ "do": "match", "pattern": "COPYING [1-9][0-9]* %" }));
    if let Ok(directory) = std::env::var("APPFERRY_SCREENSHOTS") {
        browser.step(&json!({ "do": "shoot", "file": format!("{directory}/status.png") }));
    }
    // Opens the synchronization and finds its error, by keyboard alone.
    let page = browser.step(&json!({ "do": "follow", "link": &id, "see": ["COPYING", "MiB of 11.44 MiB", "FAILED"] }));
    assert!(page["text"].as_str().expect("text").contains("acs:ram::1234:user/admin"), "{page}");
    let page = browser
        .step(&json!({ "do": "see", "see": ["cn-beijing\t✓ AVAILABLE", "cn-shanghai\t✓ AVAILABLE", "State\nFAILED"] }));
    let text = page["text"].as_str().expect("text");
    let failed = text.lines().find(|line| line.starts_with("cn-shenzhen\t✗ FAILED")).expect("the region that failed");
    assert!(failed.contains("does not exist"), "{failed}");
    browser.step(&json!({ "do": "follow", "link": "All images", "see": ["Images and regions", "✗ FAILED"] }));

    let colors = browser.step(&json!({ "do": "colors" }));
    assert_eq!((&colors["light"], &colors["dark"]), (&json!("rgb(255, 255, 255)"), &json!("rgb(21, 24, 29)")));
    let logs = browser.step(&json!({ "do": "logs" }));
    assert_eq!(logs["hosts"], json!([url.trim_start_matches("http://")]), "no foreign hosts");
    // The guessed token is the only error in the browser's log.
    for message in logs["messages"].as_array().expect("messages") {
        let message = message.as_str().expect("text");
        assert!(message.contains("/api/") && message.contains("404"), "{message}");
    }
    let page = browser.step(&json!({ "do": "follow", "link": "leave", "see": ["Signed out", "Bearer token"] }));
    assert_eq!(page["focus"], "token");
}

async fn get(url: &str, token: Option<&str>) -> (StatusCode, reqwest::header::HeaderMap, String) {
    let request = reqwest::Client::new().get(url);
    let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
    let response = request.send().await.expect("it answers");
    let (status, headers) = (response.status(), response.headers().clone());
    (status, headers, response.text().await.expect("text"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_tells_what_its_reader_could_ask_for_and_nothing_else() {
    let mut site = Site::new();
    images::write(&site.image(HOME, "a"), &[noise(10, 1)]);
    let (served, url) = serve(&mut site, "").await;
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(ask("a", &[])).await.expect("it is accepted").into_inner().request_id;
    site::finished(&mut client, &id).await;

    for path in ["regions", "images", "synchronizations", &format!("synchronizations/{id}")] {
        let url = format!("{url}/api/{path}");
        let (status, headers, body) = get(&url, None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}: {body}");
        assert!(body.contains("MissingCredentials") && headers["cache-control"] == "no-store", "{body}");
        let (status, _, body) = get(&url, Some(READER)).await;
        let json: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status, StatusCode::OK, "{path}: {json}");
        assert!(json.is_object() && body.contains(if path == "regions" { HOME } else { "\"a\"" }), "{body}");
    }
    let (status, _, body) = get(&format!("{url}/api/images"), Some(SYNC_ONLY)).await;
    assert!(status == StatusCode::FORBIDDEN && body.contains("ehpc:ListImages"), "{body}");
    let (status, _, body) = get(&format!("{url}/api/synchronizations/nonsense"), Some(READER)).await;
    assert!(status == StatusCode::FORBIDDEN && body.contains("InvalidParams") && body.contains("nonsense"), "{body}");
    let (status, ..) = get(&format!("{url}/api/secrets"), Some(site::ADMIN)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // The audit log has the decisions, as for any call.
    let audit = fs::read_to_string(site.audit()).expect("an audit log");
    assert!(audit.contains("/appferry.v1.ImageService/ListImages"), "{audit}");

    let (status, headers, body) = get(&format!("{url}/"), None).await;
    assert!(status == StatusCode::OK && body.contains("<title>appferry</title>") && !body.contains("gromacs"));
    let policy = headers["content-security-policy"].to_str().expect("text");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credential_is_taken_over_a_connection_that_others_could_read() {
    // An address of this machine other than the loopback address.
    let Some(address) = foreign_address() else { panic!("there is no address but the loopback's") };
    let mut site = Site::new();
    let http = free_address();
    site.more = format!("[http]\nlisten = \"0.0.0.0:{}\"\nallow_remote = true\n", http.port());
    let _served = site.serve().await;
    let (near, far) = (format!("http://{http}"), format!("http://{address}:{}", http.port()));
    let (status, _, body) = get(&format!("{far}/api/images"), Some(site::ADMIN)).await;
    assert!(status == StatusCode::FORBIDDEN && body.contains("server.allow_plaintext"), "{body}");
    for url in [format!("{near}/api/images"), format!("{far}/livez")] {
        assert_eq!(get(&url, Some(site::ADMIN)).await.0, StatusCode::OK, "{url}");
    }
}

/// Returns an address of this machine other than the loopback address.
fn foreign_address() -> Option<std::net::IpAddr> {
    // No packet is sent: this only selects the local address of the route.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}
