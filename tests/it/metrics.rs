//! Metrics and health probes. A real Prometheus scrapes the metrics and evaluates every expression of the alerts and of
//! the dashboard. The metrics are also exported by OTLP, and their cardinality is bounded.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use appferry::contract::v1::SynchronizationState;
use serde_json::Value;
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, metadata::MetadataValue};
use tonic_prost::ProstCodec;

use crate::harness::{
    PATIENCE,
    address::free_address,
    collector::Collector,
    database::{Kind, empty},
    images,
    process::{self, Served},
    site::{self, HOME, Site, app_sync, ask, images_client},
    tcp_proxy::TcpProxy,
    until,
};

const RULES: &str = include_str!("../../deploy/prometheus/alerts.yaml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/appferry.json");

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const METRICS: &str = include_str!("../../docs/metrics.md");

#[test]
fn every_alert_has_a_page_that_tells_what_to_do() {
    let alerts: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let pages: Vec<&str> = OPERATIONS.lines().filter_map(|line| line.strip_prefix("### Appferry")).collect();
    assert_eq!(alerts.iter().map(|alert| alert.trim_start_matches("Appferry")).collect::<Vec<_>>(), pages);
    for alert in alerts {
        assert!(RULES.contains(&format!("runbook: docs/operations.md#{}\n", alert.to_lowercase())), "{alert}");
    }
}

/// Starts a service in its own process, and returns it with the URL of its metrics.
async fn serve(site: &mut Site, otlp: Option<&str>) -> (Served, String) {
    let http = free_address();
    site.more = format!("[http]\nlisten = \"{http}\"\n[housekeeping]\ninterval_ms = 100\n");
    let config = site.write_config();
    let path = config.to_str().expect("text");
    process::migrate(&config);
    let mut command = process::command(site.directory.path(), &["serve", "--config", path]);
    if let Some(endpoint) = otlp {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_METRIC_EXPORT_INTERVAL", "600000");
    }
    (Served::start(command, site.directory.path().join("log")).await, format!("http://{http}"))
}

async fn get(url: &str) -> (u16, String) {
    let response = reqwest::get(url).await.expect("it answers");
    (response.status().as_u16(), response.text().await.expect("text"))
}

/// Returns the sum of a metric over the series with all of these labels.
fn total(metrics: &str, name: &str, labels: &[&str]) -> i64 {
    let of = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|l| line.contains(l))
    };
    let value = |line: &str| line.rsplit(' ').next().and_then(|number| number.parse::<i64>().ok()).expect("a number");
    metrics.lines().filter(of).map(value).sum()
}

/// Generates every measured event: an image in two regions, a region that fails, rejected calls.
async fn work(served: &Served, site: &Site) {
    images::write(&site.image(HOME, "a"), &[images::noise(100_000, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    fs::remove_dir(site.region("cn-shenzhen")).expect("it was there");
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(ask("a", &[])).await.expect("it is accepted").into_inner().request_id;
    assert_eq!(site::finished(&mut client, &id).await.state(), SynchronizationState::Failed);
    app_sync(served.address, Some(site::READER)).await.synchronize_app(ask("a", &[])).await.expect_err("it may not");
    client.synchronize_app(ask("nobody", &[])).await.expect_err("there is none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted() {
    let mut site = Site::new();
    let (collector, endpoint) = Collector::start().await;
    let (mut served, http) = serve(&mut site, Some(&endpoint)).await;
    work(&served, &site).await;
    // Unknown methods share one label value, however many are called.
    let channel = site::channel(served.address).await;
    for method in 0..20 {
        let mut client = Grpc::new(channel.clone());
        client.ready().await.expect("it is there");
        let mut request = tonic::Request::new(());
        if method % 2 == 0 {
            let token = format!("Bearer {}", site::ADMIN);
            request.metadata_mut().insert("authorization", MetadataValue::try_from(token).expect("a token"));
        }
        let path: PathAndQuery = format!("/appferry.v1.AppSyncService/Bogus{method}").parse().expect("a path");
        client.unary::<(), (), _>(request, path, ProstCodec::default()).await.expect_err("there is none");
    }
    let (status, metrics) = get(&format!("{http}/metrics")).await;
    assert_eq!(status, 200);
    let count = |name: &str, labels: &[&str]| total(&metrics, name, labels);
    let calls = "rpc_server_call_duration_seconds_count";
    let synchronize = "rpc_method=\"appferry.v1.AppSyncService/SynchronizeApp\"";
    for (code, times) in [("OK", 1), ("PERMISSION_DENIED", 1), ("NOT_FOUND", 1)] {
        let code = format!("rpc_response_status_code=\"{code}\"");
        assert_eq!(count(calls, &[synchronize, &code]), times, "{code}: {metrics}");
    }
    assert_eq!(count(calls, &["rpc_method=\"_OTHER\""]), 20);
    assert!(!metrics.contains("Bogus"), "{metrics}");
    for (region, state, attempts) in
        [("cn-beijing", "AVAILABLE", 1), ("cn-shenzhen", "PENDING", 2), ("cn-shenzhen", "FAILED", 1)]
    {
        let labels = [format!("appferry_region_id=\"{region}\""), format!("appferry_state=\"{state}\"")];
        let labels = labels.each_ref().map(String::as_str);
        assert_eq!(count("appferry_copy_duration_seconds_count", &labels), attempts, "{labels:?}: {metrics}");
        assert_eq!(count("appferry_copy_attempts_total", &labels), attempts, "{labels:?}: {metrics}");
    }
    assert!(metrics.contains("appferry_claims_lost_total{"), "a counter is exported before its first event: {metrics}");
    assert!(count("appferry_copy_io_bytes_total", &["cn-beijing", "copied"]) > 100_000);
    assert_eq!(count("appferry_copies_running", &[]), 0);
    assert_eq!(count("appferry_queue_depth", &["cn-beijing"]), 0);
    assert!(metrics.contains("appferry_queue_age_seconds{"), "{metrics}");
    let denied = ["appferry_action=\"ehpc:SynchronizeApp\"", "appferry_decision=\"deny\""];
    assert_eq!(count("appferry_authorization_decisions_total", &denied), 1);
    assert!(count("appferry_commit_size_sum", &["calls"]) >= 2);
    assert!(count("appferry_commit_duration_seconds_count", &["reports"]) >= 1);
    assert!(count("db_client_connection_count", &[]) >= 1);

    // The documented metrics are exactly the exported ones.
    let reported = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let reported: BTreeSet<&str> = reported.filter(|name| *name != "target_info").collect();
    let row = |line: &'static str| line.strip_prefix("| `")?.split('`').next();
    let documented: BTreeSet<&str> = METRICS.lines().filter_map(row).collect();
    assert_eq!(reported, documented);

    // The same metrics are exported by OTLP, the last values at the shutdown.
    assert_eq!(collector.metrics(), BTreeSet::new());
    served.terminate();
    assert!(served.ended().await.success());
    let sent = collector.metrics();
    for name in
        ["rpc.server.call.duration", "appferry.copy.duration", "appferry.queue.age", "db.client.connection.count"]
    {
        assert!(sent.contains(name), "{sent:?}");
    }
}

/// A connection that is pinned to a task counts as idle between queries; otherwise an alert on pool usage would fire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_nobody_uses_are_idle() {
    if !Kind::Postgres.is_available() {
        return;
    }
    let site = Site::new();
    let url = empty(Kind::Postgres, site.directory.path()).await;
    let mut site = site.on(&url);
    let (served, http) = serve(&mut site, None).await;
    work(&served, &site).await;
    until("idle connections", async || {
        let (_, metrics) = get(&format!("{http}/metrics")).await;
        let count = |state| total(&metrics, "db_client_connection_count", &["pool_name=\"write\"", state]);
        (count("state=\"used\"") == 0 && count("state=\"idle\"") >= 1).then_some(())
    })
    .await;
    drop(served);
}

/// A Prometheus server. Killed when dropped.
struct Prometheus {
    child: Child,
    url: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    async fn start(directory: &Path, target: &str) -> Self {
        let address = free_address();
        let config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [alerts.yaml]\nscrape_configs:\n  \
             - job_name: appferry\n    static_configs:\n      - targets: [\"{target}\"]\n"
        );
        fs::write(directory.join("prometheus.yaml"), config).expect("a configuration");
        fs::write(directory.join("alerts.yaml"), RULES).expect("rules");
        let child = Command::new("prometheus")
            .args(["--config.file=prometheus.yaml", "--storage.tsdb.path=prometheus", "--log.level=error"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is installed (scripts/tools)");
        let prometheus = Self { child, url: format!("http://{address}") };
        let ready = format!("{}/-/ready", prometheus.url);
        until("Prometheus", async || reqwest::get(&ready).await.ok()?.error_for_status().ok()).await;
        prometheus
    }

    /// Evaluates a `PromQL` expression and returns the resulting series.
    async fn ask(&self, expression: &str) -> Vec<Value> {
        let url = url::Url::parse_with_params(&format!("{}/api/v1/query", self.url), [("query", expression)]);
        let (_, text) = get(url.expect("a URL").as_str()).await;
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().expect("a vector").clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_answers_every_expression() {
    let mut site = Site::new();
    let (served, http) = serve(&mut site, None).await;
    let prometheus = Prometheus::start(site.directory.path(), http.trim_start_matches("http://")).await;
    until("a scrape", async || (!prometheus.ask("up{job=\"appferry\"} == 1").await.is_empty()).then_some(())).await;
    // A counter needs a sample before the event, so that an increase can be computed.
    app_sync(served.address, Some(site::READER)).await.synchronize_app(ask("a", &[])).await.expect_err("it may not");
    work(&served, &site).await;
    let counted = "count_over_time((appferry_copy_attempts_total{appferry_state=\"FAILED\"} > 0)[1m:1s]) >= 3";
    until("scrapes of the failure", async || (!prometheus.ask(counted).await.is_empty()).then_some(())).await;

    // Every expression of the dashboard has a result.
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut expressions = 0;
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets")) {
        let expression = target["expr"].as_str().expect("text").replace("$__rate_interval", "1m");
        assert!(!prometheus.ask(&expression).await.is_empty(), "{expression} has no answer");
        expressions += 1;
    }
    assert!(expressions >= 14);
    // Every alert rule evaluates without an error, and the expression without its threshold has a result.
    let (_, rules) = get(&format!("{}/api/v1/rules", prometheus.url)).await;
    let rules: Value = serde_json::from_str(&rules).expect("JSON");
    let rules = rules["data"]["groups"][0]["rules"].as_array().expect("rules").clone();
    assert_eq!(rules.len(), RULES.matches("- alert:").count());
    for rule in &rules {
        assert!(rule["lastError"].is_null() || rule["lastError"] == "", "{rule}");
        let name = rule["name"].as_str().expect("a name");
        let query = rule["query"].as_str().expect("text").replace("[15m]", "[1m]").replace("[5m]", "[1m]");
        let compared =
            query.rsplit_once([' ']).map_or(query.as_str(), |(left, _)| left.trim_end_matches(['=', '>', '<', ' ']));
        match name {
            "AppferryQueueUnseen" => assert!(prometheus.ask(&query).await.is_empty(), "there is a leader"),
            "AppferryDatabaseBusy" => {
                let idle = query.split(" == ").next().expect("a part");
                assert!(!prometheus.ask(idle).await.is_empty(), "{idle}");
            }
            // The rate of an event that has never happened has no result.
            "AppferryCallErrors" => {}
            _ => assert!(!prometheus.ask(compared).await.is_empty(), "{name}: {compared} has no answer"),
        }
    }
    // One alert fires, and another one does not.
    let state = |wanted: &str| {
        let rule = rules.iter().find(|rule| rule["name"] == wanted).expect("the rule");
        rule["query"].as_str().expect("text").to_owned()
    };
    assert!(!prometheus.ask(&state("AppferryCopiesFail")).await.is_empty(), "a copy has failed");
    assert!(prometheus.ask(&state("AppferryDown")).await.is_empty(), "it is there");
    drop(served);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_tell_life_and_readiness_apart() {
    if !Kind::Postgres.is_available() {
        return;
    }
    let site = Site::new();
    let mut url: url::Url = empty(Kind::Postgres, site.directory.path()).await.parse().expect("a URL");
    let port = url.port().expect("a port");
    let tcp_proxy = TcpProxy::start(port).await;
    url.set_port(Some(tcp_proxy.address.port())).expect("it has one");
    let mut site = site.on(url.as_str());
    site.database = "timeout_ms = 1000".to_owned();
    let (mut served, http) = serve(&mut site, None).await;
    let is = async |path: &str, status: u16| {
        let url = format!("{http}{path}");
        until(path, async || {
            let (reported, text) = get(&url).await;
            (reported == status).then_some(text)
        })
        .await
    };
    assert_eq!(is("/livez", 200).await, "alive\n");
    assert_eq!(is("/readyz", 200).await, "ready\n");
    assert_eq!(get(&format!("{http}/nothing")).await.0, 404);
    // No server listens on this port.
    tcp_proxy.set_upstream(1);
    tcp_proxy.cut();
    let why = is("/readyz", 503).await;
    assert!(why.starts_with("the database is unreachable or read-only"), "{why}");
    assert_eq!(is("/livez", 200).await, "alive\n");
    tcp_proxy.set_upstream(port);
    is("/readyz", 200).await;
    served.terminate();
    assert!(served.ended().await.success());
    tokio::time::timeout(PATIENCE, reqwest::get(format!("{http}/livez")))
        .await
        .expect("at once")
        .expect_err("it has ended");
}
