//! Isolation of regions: a region that is slow, rejects or does not respond delays neither other regions of the same
//! image nor other images.

use std::time::Duration;

use appferry::contract::v1::{RegionState, Synchronization, SynchronizationState};

use crate::harness::{
    address::free_address,
    images::{self, noise},
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    site::{HOME, Running, Site, TARGETS},
    until,
};

const SICK: &str = TARGETS[0];
const HEALTHY: [&str; 2] = [TARGETS[1], TARGETS[2]];
/// The number of images, which is more than a worker copies into one region at once.
const IMAGES: usize = 7;

/// Returns a site whose region [`SICK`] has the given store. Few concurrent copies and long timeouts make a shared
/// bottleneck visible.
fn site(store: String) -> Site {
    let mut site = Site::new().with(SICK, store, "");
    site.worker.push_str("\nconcurrency = 1\nstall_ms = 600000\npatience_ms = 600000");
    site
}

fn state(synchronization: &Synchronization, region: &str) -> RegionState {
    let region_state =
        synchronization.regions.iter().find(|candidate| candidate.region_id == region).expect("the region");
    region_state.state()
}

/// Synchronizes several images to all regions, and waits until the healthy regions have all of them.
async fn healthy_regions_get_everything(running: &Running) -> Vec<String> {
    let mut requests = Vec::new();
    for n in 0..IMAGES {
        let app = running.add(&format!("image-{n}"), &[noise(300_000, n as u64), noise(5_000, 100 + n as u64)]).await;
        requests.push(running.synchronize(&app, &[]).await.expect("it is accepted"));
    }
    for request in &requests {
        until("the image in the healthy regions", async || {
            let synchronization = running.get(request).await;
            HEALTHY.iter().all(|region| state(&synchronization, region) == RegionState::Available).then_some(())
        })
        .await;
    }
    for n in 0..IMAGES {
        for region in HEALTHY {
            images::verify(&running.site.image(region, &format!("image-{n}")));
        }
    }
    requests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_never_answers_delays_no_other_and_no_shutdown() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.address, |_| Action::Hang).await;
    let running = site(proxy.store("apps")).start().await;
    let requests = healthy_regions_get_everything(&running).await;
    for request in &requests {
        let synchronization = running.get(request).await;
        assert_eq!(synchronization.state(), SynchronizationState::Running);
        assert!(
            [RegionState::Pending, RegionState::Copying].contains(&state(&synchronization, SICK)),
            "{synchronization:?}"
        );
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_refuses_connections_delays_no_other() {
    let running = site(format!("registry+http://{}/apps", free_address())).start().await;
    healthy_regions_get_everything(&running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_hangs_at_the_last_request_delays_no_other() {
    let registry = Registry::start().await;
    let last = |request: &ReceivedRequest| request.method == http::Method::PUT && request.path.contains("/manifests/");
    let proxy =
        Proxy::start(registry.address, move |request| if last(request) { Action::Hang } else { Action::Pass }).await;
    let running = site(proxy.store("apps")).start().await;
    healthy_regions_get_everything(&running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_region_delays_no_other() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.address, |_| Action::Pass).await;
    proxy.hold_uplink(20_000);
    let running = site(proxy.store("apps")).start().await;
    let requests = healthy_regions_get_everything(&running).await;
    let last = running.get(requests.last().expect("some")).await;
    assert_ne!(state(&last, SICK), RegionState::Available);
    running.stop().await;
}

/// A store that hangs in any operation is abandoned and retried: it gets its images once it responds again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_is_given_up_and_retried() {
    type Rule = fn(&ReceivedRequest) -> bool;
    let steps: [(&str, Rule); 4] = [
        ("looking for the image", |request| {
            request.method == http::Method::HEAD && request.path.contains("/manifests/")
        }),
        ("looking for a blob", |request| request.method == http::Method::HEAD && request.path.contains("/blobs/")),
        ("writing a blob", |request| request.method == http::Method::PUT && request.path.contains("/blobs/uploads/")),
        ("publishing the image", |request| request.method == http::Method::PUT && request.path.contains("/manifests/")),
    ];
    for (step, hangs) in steps {
        let registry = Registry::start().await;
        let proxy =
            Proxy::start(registry.address, move |request| if hangs(request) { Action::Hang } else { Action::Pass })
                .await;
        let mut site = Site::new().with(SICK, proxy.store("apps"), "");
        site.worker = site.worker.replace("attempts = 3", "attempts = 1000");
        site.worker.push_str("\nstall_ms = 300");
        let running = site.start().await;
        let app = running.add("a", &[noise(300_000, 1)]).await;
        let request = running.synchronize(&app, &[]).await.expect("it is accepted");
        let error = until("the error of the stalled attempt", async || {
            let synchronization = running.get(&request).await;
            let region = synchronization
                .regions
                .iter()
                .find(|candidate| candidate.region_id == SICK)
                .expect("the region")
                .clone();
            region.error
        })
        .await;
        assert!(error.message.contains(&format!("{step} took too long")), "{step}: {error:?}");
        proxy.rule(|_| Action::Pass);
        let done = running.finished(&request).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{step}: {done:?}");
        running.stop().await;
    }
}

/// While the source delivers bytes, however slowly, the destination does not count as stalled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_source_is_no_stall_of_its_destinations() {
    let home = Registry::start().await;
    let proxy = Proxy::start(
        home.address,
        |request| if request.reads_blob() { Action::Throttle(200_000) } else { Action::Pass },
    )
    .await;
    let mut site = Site::new().with(HOME, proxy.store("apps"), "");
    site.worker = site.worker.replace("attempts = 3", "attempts = 1");
    site.worker.push_str("\nstall_ms = 3000");
    let layout = site.directory.path().join("made");
    images::write(&layout, &[noise(1_500_000, 1)]);
    home.push(&layout, "apps/a:1");
    let running = site.start().await;
    let url = format!("{}/apps/a:1", proxy.address);
    running.images().await.add_image(crate::harness::site::container("a", &url)).await.expect("it is registered");
    let started = std::time::Instant::now();
    let request = running.synchronize("a", &[]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(started.elapsed() > Duration::from_secs(6), "it took longer than the stall timeout");
    running.stop().await;
}
