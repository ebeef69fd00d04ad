//! Unauthenticated callers cannot fill the audit log or the process log.

use std::{fs, time::Duration};

use appferry::{app::Role, config::Config, db};

use super::http2::{ACK, Connection, PING, frame};
use crate::harness::{
    process::Served,
    refusal,
    site::{ADMIN, Site, app_sync, ask},
    until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_few_lines_that_are_short() {
    let running = Site::new().start_as(Role::Server).await;
    let path = format!("/appferry.v1.AppSyncService/{}", "x".repeat(15_000));
    let mut connection = Connection::open(running.address, 65_535).await;
    for call in 1..=600_usize {
        connection.call(&path, &[("authorization", "Bearer nope")]).await;
        if call % 50 == 0 {
            assert!(connection.listen(Duration::from_secs(10), |c| c.ended.len() >= call).await, "{call}");
        }
    }
    let reported = |text: &str| {
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        lines.map(|line| line["refused"].as_u64().unwrap_or(1)).sum::<u64>()
    };
    let log = until("all lines", async || {
        let text = fs::read_to_string(running.site.audit()).unwrap_or_default();
        let whole = text.ends_with('\n');
        (whole && reported(&text) == 600).then_some(text)
    })
    .await;
    assert!(log.lines().count() < 160, "{} lines", log.lines().count());
    assert!(log.lines().all(|line| line.len() < 512), "a line is longer");
    // The service still answers valid calls after it has rejected many others.
    let refused = app_sync(running.address, Some(ADMIN)).await.synchronize_app(ask("nobody-knows-it", &[])).await;
    assert_eq!(refusal::read(&refused.expect_err("there is none")).reason, "ImageNotFound");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_may_name_is_cut_short() {
    let running = Site::new().start_as(Role::Server).await;
    let id = "z".repeat(50_000);
    let mut connection = Connection::open(running.address, 65_535).await;
    let stream =
        connection.call("/appferry.v1.ImageService/GetImage", &[("authorization", &format!("Bearer {ADMIN}"))]).await;
    let mut content = vec![0x0a, 0xd0, 0x86, 0x03];
    content.extend(id.bytes());
    for piece in super::http2::message(&content).chunks(16_000) {
        connection.data(stream, piece, false).await;
    }
    connection.data(stream, &[], true).await;
    assert!(connection.listen(Duration::from_secs(5), |c| c.ended.contains_key(&stream)).await);
    let line = until("the log line", async || {
        let text = fs::read_to_string(running.site.audit()).unwrap_or_default();
        text.lines().next().filter(|_| text.ends_with('\n')).map(str::to_owned)
    })
    .await;
    assert!(line.contains("app/zzzz") && line.contains('…') && line.len() < 1_024, "{} bytes", line.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_nobody_asked_for_write_no_log() {
    let site = Site::new();
    let file = site.write_config();
    let config = Config::load(&file).expect("it is one");
    db::migrate(&config.database.settings()).await.expect("the schema");
    let served = Served::configured(&file).await;
    let logged = || fs::read_to_string(&served.log).expect("a log");
    let mut connection = Connection::open(served.address, 65_535).await;
    connection.listen(Duration::from_millis(200), |_| false).await;
    let before = logged().len();
    connection.send(&frame(PING, ACK, 0, b"12345678").repeat(2_000)).await;
    // Once the service answers this call, it has read all earlier bytes of the connection.
    let stream = connection.call("/nothing.at.All/Here", &[]).await;
    assert!(connection.listen(Duration::from_secs(5), |c| c.closed || c.ended.contains_key(&stream)).await);
    assert!(logged().len() - before < 2_048, "{}", logged());
    drop(served);
}
