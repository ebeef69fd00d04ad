//! Deadlines and limits: a call ends by its deadline, excess calls are rejected at once, and health checks are exempt
//! from the limits.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use appferry::{
    app::Role,
    contract::v1::{SynchronizeAppRequest, WatchSynchronizationRequest},
};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use sea_orm::ConnectionTrait as _;
use tokio::net::TcpStream;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    images::noise,
    refusal,
    site::{ADMIN, Running, Site, ask},
    until,
};

/// Takes the write lock of a site's database. It is released when the returned connection is dropped.
async fn hold(running: &Running) -> sea_orm::DatabaseConnection {
    let mut options = sea_orm::ConnectOptions::new(format!("sqlite://{}", running.site.file().display()));
    options.max_connections(1);
    let other = sea_orm::Database::connect(options).await.expect("a connection");
    other.execute_unprepared("BEGIN IMMEDIATE").await.expect("the lock");
    other
}

/// Makes a call over a bare HTTP/2 connection: tonic's client would time out by itself, before the service responds.
async fn bare_call(address: SocketAddr, timeout: &str, message: &SynchronizeAppRequest) -> Status {
    let stream = TokioIo::new(TcpStream::connect(address).await.expect("it listens"));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let message = message.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).expect("it is short").to_be_bytes());
    body.extend(message);
    let request = http::Request::post(format!("http://{address}/appferry.v1.AppSyncService/SynchronizeApp"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {ADMIN}"))
        .header("grpc-timeout", timeout)
        .body(Full::new(bytes::Bytes::from(body)))
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    Status::from_header_map(response.headers()).expect("a status")
}

#[tokio::test]
async fn a_call_ends_by_the_deadline_that_its_caller_names() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let held = hold(&running).await;
    let started = Instant::now();
    let refused = bare_call(running.address, "150m", &ask(&app, &[])).await;
    // The call ends before the transaction timeout of 5 s.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let refused = refusal::read(&refused);
    refused.is(Code::DeadlineExceeded, "RequestTimeout", 408);
    assert!(refused.message.contains("150ms"), "{}", refused.message);
    held.execute_unprepared("ROLLBACK").await.expect("the lock is released");
    running.stop().await;
}

#[tokio::test]
async fn a_deadline_is_capped_and_a_call_that_names_none_has_one() {
    let mut site = Site::new();
    site.server = "default_deadline_seconds = 1\nmax_deadline_seconds = 1".to_owned();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let held = hold(&running).await;
    let refused = running.app_sync().await.synchronize_app(ask(&app, &[])).await.expect_err("it can't be committed");
    refusal::read(&refused).is(Code::DeadlineExceeded, "RequestTimeout", 408);
    let refused = bare_call(running.address, "1H", &ask(&app, &[])).await;
    refusal::read(&refused).is(Code::DeadlineExceeded, "RequestTimeout", 408);
    held.execute_unprepared("ROLLBACK").await.expect("the lock is released");
    running.stop().await;
}

#[tokio::test]
async fn a_stream_ends_by_its_deadline_too() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let mut request = Request::new(WatchSynchronizationRequest { request_id: id });
    request.metadata_mut().insert("grpc-timeout", "300m".parse().expect("a header"));
    let started = Instant::now();
    let mut stream = running.app_sync().await.watch_synchronization(request).await.expect("a stream").into_inner();
    stream.message().await.expect("it goes on").expect("a snapshot");
    let ended = stream.message().await.expect_err("nothing changes, and time is up");
    assert!(started.elapsed() >= Duration::from_millis(250), "{:?}", started.elapsed());
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
    assert_eq!(tonic_types::StatusExt::get_details_error_info(&ended).expect("details").reason, "RequestTimeout");
    running.stop().await;
}

#[tokio::test]
async fn a_call_that_finds_no_room_is_told_at_once_and_health_is_told_all_the_same() {
    let mut site = Site::new();
    site.server = "max_in_flight = 2".to_owned();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let held = hold(&running).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let mut client = running.app_sync().await;
        let app = app.clone();
        calls.spawn(async move {
            let started = Instant::now();
            (client.synchronize_app(ask(&app, &[])).await, started.elapsed())
        });
    }
    let mut shed = 0;
    while shed < 10 {
        let (answer, took) = calls.join_next().await.expect("ten are shed").expect("no panic");
        let refused = refusal::read(&answer.expect_err("the database is held"));
        refused.is(Code::Unavailable, "ServiceUnavailable", 503);
        assert_eq!(refused.retry_after, Some(1.0));
        assert!(took < Duration::from_millis(1_500), "{took:?}");
        shed += 1;
    }
    let mut health = HealthClient::new(running.channel().await);
    health.check(HealthCheckRequest::default()).await.expect("it is answered");
    held.execute_unprepared("ROLLBACK").await.expect("the lock is released");
    until("capacity", async || running.synchronize(&app, &[]).await.ok()).await;
    running.stop().await;
}
