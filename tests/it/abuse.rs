//! Abusive clients: credential guessing, excessive calls, and unused connections.

use std::time::{Duration, Instant};

use appferry::{app::Role, contract::v1::WatchSynchronizationRequest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use crate::harness::{
    PATIENCE,
    images::noise,
    refusal,
    site::{ADMIN, READER, Running, SYNC_ONLY, Site, app_sync, ask},
    tcp_proxy::TcpProxy,
    until,
};

async fn reason(running: &Running, token: &str) -> refusal::Refusal {
    let refused = app_sync(running.address, Some(token)).await.synchronize_app(ask("nobody-knows-it", &[])).await;
    refusal::read(&refused.expect_err("there is no image"))
}

#[tokio::test]
async fn who_guesses_has_to_wait() {
    let mut site = Site::new();
    site.more = "[limits]\nfailed_credentials_per_minute = 5\n".to_owned();
    let running = site.start_as(Role::Server).await;
    for guess in 0..5 {
        let refused = reason(&running, &format!("guess-{guess}")).await;
        refused.is(Code::Unauthenticated, "InvalidAccessKeyId.NotFound", 404);
    }
    let refused = reason(&running, "guess-5").await;
    refused.is(Code::ResourceExhausted, "Throttling", 429);
    assert!(refused.retry_after.is_some_and(|seconds| (0.1..=12.0).contains(&seconds)), "{refused:?}");
    // A valid credential from the same address is not throttled.
    assert_eq!(reason(&running, ADMIN).await.reason, "ImageNotFound");
    running.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_waits_and_hurts_nobody_else() {
    let mut site = Site::new();
    site.more = "[limits]\ncalls_per_second = 2\n".to_owned();
    let running = site.start_as(Role::Server).await;
    let throttled = until("a call that exceeds the rate", async || {
        let refusals = futures_util::future::join_all((0..8).map(|_| reason(&running, SYNC_ONLY))).await;
        refusals.into_iter().find(|refused| refused.reason == "Throttling")
    })
    .await;
    throttled.is(Code::ResourceExhausted, "Throttling", 429);
    assert!(throttled.retry_after.is_some_and(|seconds| seconds <= 0.5), "{throttled:?}");
    assert_eq!(reason(&running, ADMIN).await.reason, "ImageNotFound");
    until("the rate limit to allow a call", async || {
        (reason(&running, SYNC_ONLY).await.reason == "ImageNotFound").then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn streams_count_for_as_long_as_they_are_open() {
    let mut site = Site::new();
    site.more = "[limits]\nmax_in_flight = 2\n".to_owned();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let watch = async || {
        let mut client = app_sync(running.address, Some(READER)).await;
        let request = WatchSynchronizationRequest { request_id: id.clone() };
        client.watch_synchronization(request).await.map(tonic::Response::into_inner)
    };
    let (first, second) = (watch().await.expect("one"), watch().await.expect("two"));
    let refused = refusal::read(&watch().await.expect_err("three are too many"));
    refused.is(Code::ResourceExhausted, "Throttling", 429);
    assert!(refused.retry_after.is_some());
    assert_eq!(reason(&running, ADMIN).await.reason, "ImageNotFound", "others are not affected");
    drop(first);
    until("a free stream", async || watch().await.ok().map(drop)).await;
    drop(second);
    running.stop().await;
}

/// The HTTP/2 connection preface and an empty SETTINGS frame (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Sends bytes over a new connection and returns everything that the service sends until the connection ends.
async fn answered(running: &Running, said: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(running.address).await.expect("it listens");
    stream.write_all(said).await.expect("it is sent");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.expect("it ends");
    answer
}

/// Returns how long the service keeps open a connection that only sends the preface.
async fn lasts(running: &Running) -> Duration {
    let began = Instant::now();
    assert!(!answered(running, PREFACE).await.is_empty(), "it receives GOAWAY");
    began.elapsed()
}

#[tokio::test]
async fn a_connection_that_nobody_uses_or_that_is_old_ends() {
    let mut site = Site::new();
    site.server = "max_connection_idle_seconds = 1".to_owned();
    let running = site.start_as(Role::Server).await;
    assert!(lasts(&running).await >= Duration::from_millis(900));
    // A connection with an open stream is in use.
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let mut client = app_sync(running.address, Some(READER)).await;
    let request = WatchSynchronizationRequest { request_id: id };
    let mut watch = client.watch_synchronization(request).await.expect("it begins").into_inner();
    watch.message().await.expect("it is open").expect("a snapshot");
    let more = tokio::time::timeout(Duration::from_secs(4), watch.message()).await;
    assert!(more.is_err(), "the stream has ended: {more:?}");
    running.stop().await;

    let mut site = Site::new();
    site.server = "max_connection_age_seconds = 1".to_owned();
    let running = site.start_as(Role::Server).await;
    assert!(lasts(&running).await >= Duration::from_millis(800));
    // A client reconnects after GOAWAY. A call that it had not sent yet may fail, at most one for each connection.
    let proxy = TcpProxy::start(running.address.port()).await;
    let mut client = app_sync(proxy.address, Some(ADMIN)).await;
    let mut given_back = 0;
    until("a third connection", async || {
        let refused = client.synchronize_app(ask("nobody-knows-it", &[])).await.expect_err("there is no image");
        if refused.code() == Code::Cancelled && refused.message() == "operation was canceled" {
            given_back += 1;
        } else {
            assert_eq!(refusal::read(&refused).reason, "ImageNotFound");
        }
        (proxy.connections() >= 3).then_some(())
    })
    .await;
    assert!(given_back <= proxy.connections(), "{given_back} calls over {} connections", proxy.connections());
    running.stop().await;
}

#[tokio::test]
async fn more_connections_than_there_are_places_for_wait() {
    let mut site = Site::new();
    site.server = "max_connections = 2".to_owned();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let watch = async || {
        let mut client = app_sync(running.address, Some(READER)).await;
        let request = WatchSynchronizationRequest { request_id: id.clone() };
        let mut watch = client.watch_synchronization(request).await.expect("it begins").into_inner();
        watch.message().await.expect("it is open").expect("a snapshot");
        watch
    };
    let open = [watch().await, watch().await];
    let mut waiting = TcpStream::connect(running.address).await.expect("it listens");
    waiting.write_all(PREFACE).await.expect("it is sent");
    let mut header = [0; 9];
    let served = tokio::time::timeout(Duration::from_millis(300), waiting.read_exact(&mut header)).await;
    assert!(served.is_err(), "a third connection is served: {served:?}");
    drop(open);
    let served = tokio::time::timeout(PATIENCE, waiting.read_exact(&mut header)).await.expect("a connection ends");
    served.expect("a frame of the server");
    assert_eq!(reason(&running, ADMIN).await.reason, "ImageNotFound");
    running.stop().await;
}

/// CVE-2023-44487 (rapid reset): opens streams and resets them at once, until the connection is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_streams_and_resets_them_is_cut_off() {
    let running = Site::new().start_as(Role::Server).await;
    let mut said = PREFACE.to_vec();
    for stream in (1..=2_001_u32).step_by(2) {
        // HEADERS with END_HEADERS and END_STREAM, `POST http /` from the static table; then RST_STREAM with CANCEL.
        said.extend([&[0, 0, 3, 1, 5][..], &stream.to_be_bytes(), &[0x83, 0x86, 0x84]].concat());
        said.extend([&[0, 0, 4, 3, 0][..], &stream.to_be_bytes(), &[0, 0, 0, 8]].concat());
    }
    let answer = answered(&running, &said).await;
    let mut rest = &answer[..];
    let mut error_code = None;
    // A frame header: three bytes of length, the type, the flags, four bytes of stream id (RFC 9113, section 4.1).
    while let [a, b, c, kind, _, _, _, _, _, more @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if *kind == 7 {
            error_code = Some(u32::from_be_bytes([more[4], more[5], more[6], more[7]]));
        }
        rest = more.get(length..).unwrap_or_default();
    }
    assert_eq!(error_code, Some(11), "GOAWAY with ENHANCE_YOUR_CALM: {answer:?}");
    assert_eq!(reason(&running, ADMIN).await.reason, "ImageNotFound", "others are answered");
    running.stop().await;
}

#[tokio::test]
async fn a_header_list_that_is_too_long_is_refused_and_costs_nobody_else() {
    let running = Site::new().start_as(Role::Server).await;
    let mut client = app_sync(running.address, Some(ADMIN)).await;
    for (length, taken) in [(12 << 10, true), (17 << 10, false), (1_000, true)] {
        let mut request = tonic::Request::new(ask("nobody-knows-it", &[]));
        request.metadata_mut().insert("x-long", "a".repeat(length).parse().expect("a value"));
        let refused = client.synchronize_app(request).await.expect_err("there is no image");
        if taken {
            assert_eq!(refusal::read(&refused).reason, "ImageNotFound", "{length}");
        } else {
            assert!(refused.message().contains("431"), "{refused:?}");
        }
    }
    running.stop().await;
}
