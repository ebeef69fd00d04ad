//! Limits on the concurrent calls of unauthenticated callers and of a single authenticated caller.

use std::time::Duration;

use appferry::app::Role;
use tokio::net::TcpStream;

use super::{administrator_is_served, http2::Connection};
use crate::harness::{
    images::noise,
    site::{READER, Running, SYNC_ONLY, Site},
    until,
};

const GET_IMAGE: &str = "/appferry.v1.ImageService/GetImage";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const SIGNED: &str = "ACS3-HMAC-SHA256 Credential=known,SignedHeaders=host,Signature=00";

/// Returns a site with an access key.
fn with_key() -> Site {
    let mut site = Site::new();
    let secret = site.directory.path().join("secret");
    std::fs::write(&secret, "secret").expect("it is written");
    site.more = format!(
        "[[principal]]\narn = \"acs:ram::1234:role/signs\"\n[[principal.access_key]]\nid = \"known\"\nsecret_file = \"{}\"\n",
        secret.display()
    );
    site
}

/// Opens `calls` calls with a credential, 128 per connection, and sends no message.
async fn half_sent(running: &Running, calls: usize, credential: &str) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..calls.div_ceil(128) {
        let mut connection = Connection::open(running.address, 65_535).await;
        for _ in 0..128 {
            connection.call(GET_IMAGE, &[("authorization", credential), ("grpc-timeout", "9999S")]).await;
        }
        connection.listen(Duration::from_millis(500), |c| c.ended.len() == 128).await;
        connections.push(connection);
    }
    connections
}

fn open(connections: &[Connection]) -> usize {
    connections.iter().map(|connection| 128 - connection.ended.len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_calls_keep_nobody_out() {
    let running = with_key().start_as(Role::Server).await;
    for (credential, most) in [
        // The service rejects these calls immediately, because the key does not exist.
        ("ACS3-HMAC-SHA256 Credential=x,SignedHeaders=host,Signature=00", 0),
        // The service must read the message to verify the signature. It limits these calls per source address.
        (SIGNED, 32),
        // The principal is authenticated but not authorized. The service limits these calls per principal.
        (&format!("Bearer {SYNC_ONLY}"), 384),
    ] {
        let mut connections = half_sent(&running, 1_152, credential).await;
        assert!(open(&connections) <= most, "{credential}: {}", open(&connections));
        administrator_is_served(&running).await;
        // The service ends the remaining calls when its own timeout expires.
        for connection in &mut connections {
            let ended = connection.listen(Duration::from_secs(15), |c| c.ended.len() == 128).await;
            assert!(ended, "{credential}: {} of 128 have ended", connection.ended.len());
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gives_up_half_way_is_written_down() {
    let running = with_key().start_as(Role::Server).await;
    let mut connection = Connection::open(running.address, 65_535).await;
    connection.call(GET_IMAGE, &[("authorization", SIGNED), ("grpc-timeout", "50m")]).await;
    let gone = connection.call(GET_IMAGE, &[("authorization", SIGNED)]).await;
    connection.listen(Duration::from_secs(5), |c| !c.ended.is_empty()).await;
    // Resets the stream with RST_STREAM and the error code CANCEL.
    connection.send(&super::http2::frame(3, 0, gone, &8_u32.to_be_bytes())).await;
    until("both decisions in the audit log", async || {
        let text = std::fs::read_to_string(running.site.audit()).unwrap_or_default();
        let denied = text.lines().filter(|line| line.contains("\"deny\"")).count();
        (denied == 2 && text.contains("ended before its caller") && text.contains("did not arrive completely"))
            .then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_prove_nothing_keep_nobody_out() {
    let mut site = Site::new();
    site.server = "max_connections = 24".to_owned();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    // A watcher is not affected by the attack and does not block others.
    let request = [&[0x0a, 36][..], id.as_bytes()].concat();
    let mut watcher = Connection::open(running.address, 65_535).await;
    let watch = watcher.ask("/appferry.v1.AppSyncService/WatchSynchronization", READER, &request).await;
    assert!(watcher.listen(Duration::from_secs(5), |c| c.received.contains_key(&watch)).await, "a snapshot");

    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(running.address).await.expect("it listens"));
    }
    administrator_is_served(&running).await;
    drop(silent);
    let mut watching = Vec::new();
    for _ in 0..64 {
        let mut connection = Connection::open(running.address, 65_535).await;
        let stream = connection.call(WATCH, &[]).await;
        connection.data(stream, &[0, 0, 0, 0, 0], true).await;
        watching.push(connection);
    }
    administrator_is_served(&running).await;
    assert!(!watcher.listen(Duration::from_millis(50), |c| c.closed || c.ended.contains_key(&watch)).await);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_has_as_many_watches_of_health_as_are_its() {
    let running = Site::new().start_as(Role::Server).await;
    let mut connection = Connection::open(running.address, 65_535).await;
    for _ in 0..40 {
        let stream = connection.call(WATCH, &[]).await;
        connection.data(stream, &[0, 0, 0, 0, 0], true).await;
    }
    assert!(connection.listen(Duration::from_secs(5), |c| c.ended.len() == 24 && c.received.len() == 16).await);
    administrator_is_served(&running).await;
    running.stop().await;
}
