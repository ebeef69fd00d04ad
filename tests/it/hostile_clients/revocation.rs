//! Revocation: the service checks open streams and connections again when the directory of principals changes.

use std::{fs, time::Duration};

use appferry::contract::v1::WatchSynchronizationRequest;
use tokio::time::Instant;
use tonic::Code;

use super::http2::Connection;
use crate::harness::{
    images::noise,
    refusal,
    site::{ADMIN, HOME, READER, Running, SYNC_ONLY, Site, TARGETS, app_sync, ask},
    until,
};

/// How long a change of the configuration file may take to have an effect. The service checks the file every second and
/// applies a change within another second. The limit is doubled for a loaded machine.
const LIMIT: Duration = Duration::from_secs(4);

/// Starts a synchronization that does not end, because one of its regions has no store.
async fn lasting() -> (Running, String) {
    let mut site = Site::new();
    site.worker = site.worker.replace("attempts = 3", "attempts = 1000");
    let running = site.start().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let region = running.site.region(TARGETS[0]);
    fs::remove_dir_all(&region).expect("it is there");
    fs::write(&region, "no directory").expect("it is written");
    let id = running.synchronize(&app, &[TARGETS[0]]).await.expect("it is accepted");
    (running, id)
}

/// Replaces the content of the configuration file by the result of `act`.
fn change(running: &Running, act: impl FnOnce(String) -> String) {
    let file = running.site.directory.path().join("appferry.toml");
    let text = fs::read_to_string(&file).expect("the configuration");
    let changed = act(text.clone());
    assert_ne!(changed, text);
    // Replaces the file atomically, so that the service reads no partial file.
    let new = file.with_extension("new");
    fs::write(&new, changed).expect("it is written");
    fs::rename(new, file).expect("it is replaced");
}

fn digest(token: &str) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(token))
}

/// Returns the status with which the reader's watch ends after the configuration is changed.
async fn watch_ends(running: &Running, id: &str, act: impl FnOnce(String) -> String) -> tonic::Status {
    let mut client = app_sync(running.address, Some(READER)).await;
    let request = WatchSynchronizationRequest { request_id: id.to_owned() };
    let mut watch = client.watch_synchronization(request).await.expect("it begins").into_inner();
    watch.message().await.expect("it is open").expect("a snapshot");
    let began = Instant::now();
    change(running, act);
    loop {
        let next = tokio::time::timeout(LIMIT, watch.message()).await.expect("it ends");
        match next {
            Ok(Some(_)) => assert!(began.elapsed() < LIMIT, "it goes on"),
            Ok(None) => panic!("it ended without an error"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_its_token_or_its_policy_is_taken_out() {
    let (running, id) = lasting().await;
    let before = fs::read_to_string(running.site.directory.path().join("appferry.toml")).expect("the configuration");
    let ended = watch_ends(&running, &id, |text| text.replace(&digest(READER), &"0".repeat(64))).await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    let details = tonic_types::StatusExt::get_details_error_info(&ended).expect("details");
    assert_eq!(details.reason, "NoPermission");
    change(&running, |_| before.clone());
    let reads = async || {
        let refused = app_sync(running.address, Some(READER)).await.synchronize_app(ask("a", &[])).await;
        (refusal::read(&refused.expect_err("it may not")).reason == "NoPermission").then_some(())
    };
    until("the token to be valid again", reads).await;
    let ended =
        watch_ends(&running, &id, |text| text.replace("\"ehpc:WatchSynchronization\"", "\"ehpc:Nothing\"")).await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    until("both decisions to be in the audit log", async || {
        let log = fs::read_to_string(running.site.audit()).expect("a log");
        let is_denied = |line: &&str| line.contains("WatchSynchronization") && line.contains("\"deny\"");
        (log.lines().filter(is_denied).count() == 2).then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_cannot_be_used_still_takes_out_whom_it_does_not_list() {
    let (running, id) = lasting().await;
    // Removes the token. The file also has errors: a home region without a store and an unknown key.
    let ended = watch_ends(&running, &id, |text| {
        let text = text.replace(&digest(READER), &"0".repeat(64));
        text.replace("[worker]\n", "[worker]\nno_such_key = 1\n")
            .replace(&format!("[home]\nregion = \"{HOME}\""), "[home]\nregion = \"nowhere\"")
    })
    .await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    let refused = app_sync(running.address, Some(ADMIN)).await.synchronize_app(ask("nobody-knows-it", &[])).await;
    assert_eq!(
        refusal::read(&refused.expect_err("there is none")).reason,
        "ImageNotFound",
        "others are still authorized"
    );
    // An invalid configuration admits no new credential. Also removes a token: once the removal is in effect, the
    // service has read the file.
    change(&running, |text| {
        let text = text.replace(&"0".repeat(64), &digest("a-new-token"));
        text.replace(&digest(SYNC_ONLY), &"1".repeat(64))
    });
    until("the removal", async || {
        let mut client = app_sync(running.address, Some(SYNC_ONLY)).await;
        let refused = client.synchronize_app(ask("nobody-knows-it", &[])).await;
        (refusal::read(&refused.expect_err("there is none")).reason == "InvalidAccessKeyId.NotFound").then_some(())
    })
    .await;
    let refused = app_sync(running.address, Some("a-new-token")).await.synchronize_app(ask("a", &[])).await;
    assert_eq!(refusal::read(&refused.expect_err("it is unknown")).reason, "InvalidAccessKeyId.NotFound");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_takes_nothing_ends_too() {
    let (running, id) = lasting().await;
    let request = [&[0x0a, 36][..], id.as_bytes()].concat();
    let mut connection = Connection::open(running.address, 0).await;
    let stream = connection.ask("/appferry.v1.AppSyncService/WatchSynchronization", READER, &request).await;
    assert!(!connection.listen(Duration::from_millis(300), |c| !c.ended.is_empty()).await);
    change(&running, |text| text.replace(&digest(READER), &"0".repeat(64)));
    assert!(connection.listen(LIMIT, |c| c.ended.contains_key(&stream)).await, "it is open");
    assert_eq!(connection.received.get(&stream), None);
    running.stop().await;
}

#[tokio::test]
async fn an_operation_that_is_waited_for_is_told_to_nobody_who_may_not_know() {
    let (running, id) = lasting().await;
    let request = [&[0x0a, 47][..], b"operations/", id.as_bytes()].concat();
    let mut connection = Connection::open(running.address, 65_535).await;
    let stream = connection.ask("/google.longrunning.Operations/WaitOperation", READER, &request).await;
    assert!(!connection.listen(Duration::from_millis(300), |c| !c.ended.is_empty()).await, "it waits");
    change(&running, |text| text.replace(&digest(READER), &"0".repeat(64)));
    assert!(connection.listen(LIMIT, |c| c.ended.contains_key(&stream)).await, "it waits");
    assert_eq!(connection.received.get(&stream), None);
    running.stop().await;
}
