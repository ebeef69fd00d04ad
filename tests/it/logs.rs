//! Logs: each line identifies its requests and its trace, and the log filter can be changed at runtime.

use std::{fs, path::Path};

use serde_json::Value;
use tonic::Request;

use crate::harness::{
    collector::Collector,
    images,
    process::{self, Served},
    site::{self, HOME, Site, app_sync, ask, images_client},
    until,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Parses the JSON lines of a log. Only lines before the service listens may have another format.
fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn find<'a>(lines: &'a [Value], message: &str) -> Option<&'a Value> {
    lines.iter().find(|line| line["message"] == message)
}

/// Sets a site's `[log]` section.
fn logging(site: &Site, log: &str) {
    let config = site.write_config();
    let text = fs::read_to_string(&config).expect("the configuration");
    fs::write(config, format!("{text}\n[log]\n{log}\n")).expect("it is written");
}

async fn served(site: &Site, endpoint: Option<&str>) -> Served {
    let directory = site.directory.path();
    process::stdout(&process::run(directory, &["migrate", "--config", "appferry.toml"]));
    let mut command = process::command(directory, &["serve", "--config", "appferry.toml"]);
    command.envs(endpoint.map(|endpoint| ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)));
    Served::start(command, directory.join("log")).await
}

/// Makes a call, waits until its copy is complete, and returns the request id.
async fn carry(site: &Site, served: &Served) -> String {
    images::write(&site.image(HOME, "a"), &[images::noise(1_000, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let mut request = Request::new(ask("a", &["cn-beijing"]));
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01").parse().expect("a header");
    request.metadata_mut().insert("traceparent", parent);
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(request).await.expect("it is accepted").into_inner().request_id;
    site::finished(&mut client, &id).await;
    id
}

#[tokio::test]
async fn a_line_of_json_names_its_request_and_its_trace() {
    let site = Site::new();
    let (_collector, endpoint) = Collector::start().await;
    logging(&site, "format = \"json\"\nfilter = \"warn,appferry=debug\"");
    let served = served(&site, Some(&endpoint)).await;
    let id = carry(&site, &served).await;

    let lines = lines(&served.log);
    let available = find(&lines, "image available").expect("a line of the copy");
    assert_eq!((&available["request_id"], &available["trace_id"]), (&Value::from(&*id), &Value::from(TRACE)));
    assert_eq!((&available["level"], &available["region"]), (&Value::from("INFO"), &Value::from("cn-beijing")));
    assert!(available["timestamp"].is_string() && available["target"].is_string(), "{available}");
    let answered = |line: &&Value| {
        line["message"] == "call finished" && line["method"] == "appferry.v1.AppSyncService/SynchronizeApp"
    };
    let answered = lines.iter().find(answered).expect("a line of the call");
    assert_eq!((&answered["request_id"], &answered["trace_id"]), (&Value::from(&*id), &Value::from(TRACE)));
    // A line that belongs to no request has no ids.
    let serving = find(&lines, "serving").expect("it serves");
    assert!(serving.get("request_id").is_none() && serving.get("trace_id").is_none(), "{serving}");
}

#[tokio::test]
async fn a_line_for_people_names_its_request_where_nothing_is_exported_too() {
    let site = Site::new();
    logging(&site, "");
    let served = served(&site, None).await;
    let id = carry(&site, &served).await;
    let text = fs::read_to_string(&served.log).expect("a log");
    let line = text.lines().find(|line| line.contains("image available")).expect("a line of the copy");
    assert!(line.ends_with(&format!(" request_id={id}")), "{line}");
    assert!(!text.contains("call finished"), "it is logged at debug level only: {text}");
}

#[tokio::test]
async fn what_is_logged_is_changed_while_a_server_and_a_worker_run() {
    let site = Site::new();
    logging(&site, "");
    let served = served(&site, None).await;
    // Starts a worker with the same configuration and its own database.
    let other = Site::new();
    logging(&other, "");
    let config = other.directory.path().join("appferry.toml");
    process::stdout(&process::run(other.directory.path(), &["migrate", "--config", "appferry.toml"]));
    let worker = Served::worker(&config, other.directory.path().join("log")).await;

    for site in [&site, &other] {
        logging(site, "format = \"json\"\nfilter = \"warn,appferry=debug\"");
    }
    for log in [&served.log, &worker.log] {
        until("the new log format", async || {
            let text = fs::read_to_string(log).expect("a log");
            text.lines().any(|line| line.starts_with("{\"") && line.contains("appferry::reload")).then_some(())
        })
        .await;
    }
    let id = carry(&site, &served).await;
    let text = fs::read_to_string(&served.log).expect("a log");
    assert!(text.contains("\"call finished\""), "debug is logged now: {text}");

    // The filter can be narrowed again.
    logging(&site, "filter = \"warn,appferry=off\"");
    until("the narrower filter", async || {
        let before = fs::metadata(&served.log).expect("a log").len();
        site::get(&mut app_sync(served.address, Some(site::ADMIN)).await, &id).await;
        (fs::metadata(&served.log).expect("a log").len() == before).then_some(())
    })
    .await;
}

#[test]
fn a_filter_that_is_none_is_refused() {
    let site = Site::new();
    logging(&site, "filter = \"appferry=loud\"");
    let output = process::run(site.directory.path(), &["serve", "--config", "appferry.toml"]);
    let said = process::stderr(&output);
    assert!(!output.status.success() && said.contains("log.filter: \"appferry=loud\""), "{said}");
}
