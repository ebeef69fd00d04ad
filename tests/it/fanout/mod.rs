//! Fan-out: a worker reads the source once for all regions, and detaches a region that lags. The tests use stores that
//! count bytes and block until a gate opens.

mod fixture;
mod observed_store;

use std::{sync::atomic::Ordering, time::Duration};

use appferry::{
    db::NewSynchronization,
    domain::{RegionStatus, SynchronizationState, Targets},
};
use fixture::{Fixture, LEASE, OTHERS, id};

use crate::harness::{
    images::{self, noise},
    until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_read_once_for_all_regions() {
    let layers = [noise(7 << 20, 1), noise(3 << 20, 2), noise(1_000, 3)];
    let fixture = Fixture::build(&layers, Duration::from_secs(30), true).await;
    let request = fixture.synchronize().await;
    fixture.available(request, &OTHERS).await;
    let config = r#"{"architecture":"amd64","os":"linux"}"#.len();
    let blobs: usize = layers.iter().map(Vec::len).sum::<usize>() + config;
    assert_eq!(fixture.read.load(Ordering::Relaxed), blobs as u64);
    for region in OTHERS {
        images::verify(&fixture.layout(region));
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_lags_holds_nobody_and_goes_on_alone() {
    let fixture = Fixture::build(&[noise(24 << 20, 1), noise(9 << 20, 2)], Duration::from_millis(200), false).await;
    let request = fixture.synchronize().await;
    let seen = fixture.available(request, &["three", "two"]).await;
    let held = &seen.regions[0];
    assert_eq!(
        (held.region.clone(), held.status),
        (id("one"), RegionStatus::Copying),
        "the others did not wait for it"
    );
    assert!(!images::visible(&fixture.layout("one")));

    fixture.gate.send(true).expect("a task waits");
    let done = fixture.available(request, &OTHERS).await;
    assert!(done.regions.iter().all(|region| region.attempt == 1), "lagging is no fault: {done:?}");
    // The two layers and the configuration are written once each: no upload is interrupted and started again.
    assert_eq!(fixture.writing.begun.load(Ordering::Relaxed), 3);
    let root = images::verify(&fixture.layout("home"));
    assert_eq!(images::verify(&fixture.layout("one")), root);
    fixture.stop().await;
}

/// Blobs that are smaller than a queue must not accumulate at a region that lags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_blobs_do_not_pile_up_at_a_region_that_lags() {
    let layers: Vec<_> = (0..60).map(|seed| noise(50_000, seed)).collect();
    let fixture = Fixture::build(&layers, Duration::from_millis(200), false).await;
    let request = fixture.synchronize().await;
    fixture.available(request, &["three", "two"]).await;
    assert!(fixture.writing.most.load(Ordering::Relaxed) <= 16, "{:?}", fixture.writing);
    fixture.gate.send(true).expect("a task waits");
    fixture.available(request, &OTHERS).await;
    assert_eq!(images::verify(&fixture.layout("one")), images::verify(&fixture.layout("home")));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_outlasts_its_lease_is_kept_alive() {
    let fixture = Fixture::build(&[noise(50_000, 1)], Duration::from_secs(30), false).await;
    let request = fixture.synchronize().await;
    fixture.available(request, &["three", "two"]).await;
    // Waits until the lease is extended well beyond its first expiry.
    let first = fixture.lease_of("one").await;
    let enough = first + 2 * i64::try_from(LEASE.as_millis()).expect("it is short");
    until("renewals", async || (fixture.lease_of("one").await >= enough).then_some(())).await;
    fixture.gate.send(true).expect("a task waits");
    let done = fixture.available(request, &OTHERS).await;
    assert_eq!(done.regions[0].attempt, 1, "no other worker claimed it: {done:?}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_joined_is_left_as_it_is() {
    let fixture = Fixture::build(&[noise(50_000, 1)], Duration::from_secs(30), false).await;
    let first = fixture.synchronize().await;
    let before = fixture.available(first, &["three", "two"]).await;
    let second = fixture.synchronize().await;
    let joined = fixture.state.synchronization_get(second).await.expect("it is known");
    let [only] = &joined.regions[..] else { panic!("one region has not got it: {joined:?}") };
    let attempt_of =
        |view: &appferry::domain::RegionView| (view.region.clone(), view.status, view.attempt, view.started_at);
    assert_eq!(attempt_of(only), attempt_of(&before.regions[0]), "nothing is restarted");
    fixture.gate.send(true).expect("a task waits");
    fixture.available(first, &OTHERS).await;
    let done = fixture.available(second, &["one"]).await;
    assert_eq!((done.state, done.regions[0].attempt), (SynchronizationState::Succeeded, 1));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_store_hangs_is_given_up_and_holds_nobody() {
    let (patience, stall) = (Duration::from_millis(100), Duration::from_millis(400));
    let fixture = Fixture::build_with(&[noise(24 << 20, 1)], patience, stall, false).await;
    let request = fixture.synchronize().await;
    let done = until("the end", async || {
        let synchronization = fixture.state.synchronization_get(request).await.expect("it is known");
        synchronization.state.is_terminal().then_some(synchronization)
    })
    .await;
    assert_eq!(done.state, SynchronizationState::Failed);
    for (region, status) in OTHERS.iter().zip([RegionStatus::Failed, RegionStatus::Available, RegionStatus::Available])
    {
        let view = done.regions.iter().find(|view| view.region == id(region)).expect("the region");
        assert_eq!(view.status, status, "{done:?}");
    }
    let fault = done.regions[0].fault.as_ref().expect("a reason");
    assert_eq!(fault.message.as_str(), "writing a blob took too long");
    fixture.stop().await;
}

/// A panic fails the copy to its region immediately: the worker does not renew the lease forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_panics_fails_and_holds_no_other() {
    let fixture = Fixture::build(&[noise(50_000, 1)], Duration::from_secs(30), true).await;
    fixture.panics.store(true, Ordering::Relaxed);
    let request = fixture.synchronize().await;
    let done = until("the end", async || {
        let synchronization = fixture.state.synchronization_get(request).await.expect("it is known");
        synchronization.state.is_terminal().then_some(synchronization)
    })
    .await;
    let status = |region: &str| done.regions.iter().find(|view| view.region == id(region)).expect("the region").status;
    assert_eq!(status("one"), RegionStatus::Failed, "{done:?}");
    assert_eq!([status("two"), status("three")], [RegionStatus::Available; 2]);
    fixture.panics.store(false, Ordering::Relaxed);
    let again = fixture.synchronize().await;
    fixture.available(again, &["one"]).await;
    fixture.stop().await;
}

/// A region that is requested while its image is being copied joins the running fan-out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_comes_later_joins_the_copy_of_its_image() {
    // The data that remains after the later regions have joined fits into the queues, so that no region lags even on a
    // busy machine.
    let layers: Vec<_> = (0..48).map(|seed| noise(50_000, seed)).collect();
    let blobs: u64 = layers.iter().map(|layer| layer.len() as u64).sum();
    let fixture = Fixture::build(&layers, Duration::from_secs(30), true).await;
    let ask = |targets: &[&str]| NewSynchronization {
        request_id: appferry::new_request_id(),
        image: "a".parse().expect("an id"),
        targets: Targets::Named(targets.iter().map(|name| id(name)).collect()),
        principal: "p".into(),
        token: None,
        overwrite: false,
        trace: None,
    };
    fixture.held_after.store(blobs / 5, Ordering::Relaxed);
    let first = fixture.state.accept(ask(&["one"])).await.expect("it is accepted");
    until("a part of the image", async || (fixture.read.load(Ordering::Relaxed) >= blobs / 5).then_some(())).await;
    let second = fixture.state.accept(ask(&["two", "three"])).await.expect("it is accepted");
    until("the later regions to join", async || {
        let synchronization = fixture.state.synchronization_get(second).await.expect("it is known");
        synchronization
            .regions
            .iter()
            .all(|view| view.status == RegionStatus::Copying && view.progress.total > 0)
            .then_some(())
    })
    .await;
    fixture.source_gate.send(true).expect("a task waits");
    fixture.available(first, &["one"]).await;
    fixture.available(second, &["two", "three"]).await;
    let read = fixture.read.load(Ordering::Relaxed);
    // A separate read for the later regions would double the number of bytes.
    assert!(read < blobs * 19 / 10, "{read} of {blobs} bytes were read: the later regions did not join");
    for region in OTHERS {
        images::verify(&fixture.layout(region));
    }
    fixture.stop().await;
}
