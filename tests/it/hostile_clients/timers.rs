//! Timeouts: every call, response and connection has a time limit that the client cannot extend.

use std::time::Duration;

use appferry::app::Role;
use sha2::Digest as _;

use super::{
    administrator_is_served,
    http2::{ACK, Connection, PING, frame},
};
use crate::harness::{
    images::noise,
    site::{ADMIN, READER, Site},
};

/// The token of a principal that may only verify images.
const VERIFIER: &str = "the-verifiers-token";
const LIST_REGIONS: &str = "/appferry.v1.ImageService/ListRegions";
const LIST_IMAGES: &str = "/appferry.v1.ImageService/ListImages";
const WATCH: &str = "/appferry.v1.AppSyncService/WatchSynchronization";
const VERIFY: &str = "/appferry.v1.ImageService/VerifyImage";

/// The error code CANCEL (RFC 9113, section 7).
const CANCEL: Option<u32> = Some(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_takes_ends_by_its_deadline() {
    let mut site = Site::new();
    site.server = "max_stream_seconds = 1\nmax_deadline_seconds = 1\ndefault_deadline_seconds = 1".to_owned();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let watch = [&[0x0a, 36][..], id.as_bytes()].concat();
    let verify = [&[0x0a, u8::try_from(app.len()).expect("it is short")][..], app.as_bytes()].concat();
    // A window of zero bytes or one byte, so that the whole response cannot be sent.
    for window in [0, 1] {
        let mut connection = Connection::open(running.address, window).await;
        let streams = [
            connection.ask(LIST_REGIONS, READER, &[]).await,
            connection.ask(LIST_IMAGES, READER, &[]).await,
            connection.ask(WATCH, READER, &watch).await,
            connection.ask(VERIFY, ADMIN, &verify).await,
        ];
        let ended =
            connection.listen(Duration::from_secs(6), |c| streams.iter().all(|s| c.ended.contains_key(s))).await;
        if window == 0 {
            assert!(ended, "{:?} have ended", connection.ended);
            assert!(streams.iter().all(|stream| connection.ended[stream] == CANCEL), "{:?}", connection.ended);
        }
        assert!(connection.received.values().all(|bytes| *bytes <= 1), "{:?}", connection.received);
    }
    administrator_is_served(&running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_no_answers_keeps_only_its_own_places() {
    let mut site = Site::new();
    site.more = format!(
        "[[principal]]\narn = \"acs:ram::1234:role/verifier\"\ntoken_sha256 = \"{}\"\npolicies = [\"verify\"]\n\
         [[policy]]\nname = \"verify\"\n\
         document = '{{\"Version\":\"1\",\"Statement\":{{\"Effect\":\"Allow\",\"Action\":\"ehpc:VerifyImage\",\"Resource\":\"*\"}}}}'\n",
        hex::encode(sha2::Sha256::digest(VERIFIER))
    );
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let mut connection = Connection::open(running.address, 0).await;
    for _ in 0..100 {
        connection.ask(LIST_IMAGES, READER, &[]).await;
    }
    connection.listen(Duration::from_millis(300), |_| false).await;
    administrator_is_served(&running).await;
    let verify = [&[0x0a, u8::try_from(app.len()).expect("it is short")][..], app.as_bytes()].concat();
    for _ in 0..20 {
        connection.ask(VERIFY, VERIFIER, &verify).await;
    }
    // Two of the calls are processed. The others are rejected with a retry delay.
    assert!(connection.listen(Duration::from_secs(5), |c| c.ended.len() == 18).await, "{:?}", connection.ended);
    let mut other = Connection::open(running.address, 65_535).await;
    let stream = other.ask(VERIFY, ADMIN, &verify).await;
    assert!(other.listen(Duration::from_secs(5), |c| c.ended.contains_key(&stream)).await, "it is verified");
    assert!(other.received.contains_key(&stream));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_old_makes_no_more_calls() {
    let mut site = Site::new();
    site.server = "max_connection_age_seconds = 1".to_owned();
    let running = site.start_as(Role::Server).await;
    let mut connection = Connection::open(running.address, 65_535).await;
    assert!(connection.listen(Duration::from_secs(5), |c| c.told_to_go).await);
    // The client ignores GOAWAY and continues to make calls.
    let began = std::time::Instant::now();
    while !connection.closed {
        connection.ask(LIST_REGIONS, READER, &[]).await;
        connection.send(&frame(PING, ACK, 0, b"whatever")).await;
        connection.listen(Duration::from_millis(50), |c| c.closed).await;
        assert!(began.elapsed() < Duration::from_secs(8), "it is still open");
    }
    running.stop().await;
}
