//! SIGTERM: no new call is accepted, calls in flight are answered, leases are released, and the process exits with
//! status 0 within its deadline, whatever its clients do.

use std::{io::Write as _, net::TcpStream, time::Instant};

use appferry::contract::v1::{RegionState, SynchronizationState, WatchSynchronizationRequest};
use tonic::Code;

use crate::harness::{
    address::free_address,
    images,
    process::Served,
    site::{self, HOME, Site, app_sync, ask, images_client},
    until,
};

async fn serve(site: &Site) -> Served {
    site.serve().await
}

#[tokio::test]
async fn a_shutdown_answers_its_watchers_and_hands_back_its_copies() {
    let mut site = Site::new();
    // A lease that is not released would expire after the end of the test.
    site.worker = "lease_ms = 3600000\nheartbeat_ms = 100".to_owned();
    let mut served = serve(&site).await;
    images::write(&site.image(HOME, "a"), &[vec![1; 200 << 20], vec![2; 200 << 20]]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(ask("a", &[])).await.expect("it is accepted").into_inner().request_id;
    until("copies in progress", async || {
        let regions = site::get(&mut client, &id).await.regions;
        regions.iter().all(|r| r.state() == RegionState::Copying).then_some(())
    })
    .await;
    let request = WatchSynchronizationRequest { request_id: id.clone() };
    let mut watch = client.watch_synchronization(request).await.expect("it starts").into_inner();
    watch.message().await.expect("a snapshot").expect("a snapshot");

    let started = Instant::now();
    served.terminate();
    let ended = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if the synchronization had"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert_eq!(served.ended().await.code(), Some(0));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());

    let served = serve(&site).await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let done = site::finished(&mut client, &id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded);
    assert!(done.regions.iter().all(|r| r.attempt == 1), "a released copy is no attempt: {done:?}");
}

#[tokio::test]
async fn a_client_that_does_not_answer_does_not_hold_the_service() {
    let mut site = Site::new();
    site.server = "shutdown_seconds = 2".to_owned();
    let mut served = serve(&site).await;
    // Sends the preface and empty SETTINGS, then nothing, not even after GOAWAY.
    let mut silent = TcpStream::connect(served.address).expect("it listens");
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("it is sent");
    // This connection does not even send a preface.
    let mute = TcpStream::connect(served.address).expect("it listens");
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    client.synchronize_app(ask("nobody-knows-it", &[])).await.expect_err("it answers, so both were accepted");
    let started = Instant::now();
    served.terminate();
    assert_eq!(served.ended().await.code(), Some(0));
    assert!(started.elapsed().as_secs() < 6, "{:?}", started.elapsed());
    let log = std::fs::read_to_string(&served.log).expect("a log");
    assert!(log.contains("cutting their connections") && !log.contains("tasks did not end in time"), "{log}");
    drop((silent, mute));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_taken_until_everybody_has_heard_that_it_is_not_ready() {
    let http = free_address();
    let mut site = Site::new();
    site.server = "drain_seconds = 2".to_owned();
    site.more = format!("[http]\nlisten = \"{http}\"\n");
    let mut served = serve(&site).await;
    let status_of = async |path: &str| reqwest::get(format!("http://{http}{path}")).await.expect("it answers").status();
    assert_eq!(status_of("/readyz").await, 200);
    let started = Instant::now();
    served.terminate();
    until("the readiness probe to fail", async || (status_of("/readyz").await == 503).then_some(())).await;
    assert_eq!(status_of("/livez").await, 200);
    // The service still accepts new connections and answers calls.
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let refused = client.synchronize_app(ask("nobody-knows-it", &[])).await.expect_err("there is none");
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(served.ended().await.code(), Some(0));
    assert!(started.elapsed().as_secs() >= 2, "{:?}", started.elapsed());
}
