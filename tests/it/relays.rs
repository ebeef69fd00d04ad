//! Relaying: regions that have an image serve as sources for others, and slow regions do not delay other regions.

use appferry::contract::v1::{ErrorCode, RegionState, SynchronizationState, error_detail::Reason};
use http::StatusCode;

use crate::harness::{
    images::{self, noise},
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    site::{HOME, Running, Site, TARGETS, container},
    until,
};

/// Four registries, each behind a proxy, and limits on the home region.
struct Fixture {
    running: Running,
    registries: Vec<Registry>,
    proxies: Vec<Proxy>,
    root: String,
}

const SIZE: u64 = 3 << 20;

impl Fixture {
    async fn build(home_keys: &str, more: &str) -> Self {
        let mut site = Site::new();
        let (mut registries, mut proxies) = (Vec::new(), Vec::new());
        for region in [HOME].into_iter().chain(TARGETS) {
            let registry = Registry::start().await;
            let proxy = Proxy::start(registry.address, |_| Action::Pass).await;
            site = site.with(region, proxy.store("apps"), if region == HOME { home_keys } else { "" });
            registries.push(registry);
            proxies.push(proxy);
        }
        more.clone_into(&mut site.more);
        let layout = site.directory.path().join("made");
        let root = images::write(&layout, &[noise(usize::try_from(SIZE).expect("small"), 1)]);
        registries[0].push(&layout, "apps/a:1");
        let running = site.start().await;
        let url = format!("{}/apps/a:1", proxies[0].address);
        running.images().await.add_image(container("a", &url)).await.expect("it is registered");
        Self { running, registries, proxies, root }
    }

    async fn synchronized(&self) {
        let request = self.running.synchronize("a", &[]).await.expect("it is accepted");
        let done = self.running.finished(&request).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
        for (place, registry) in self.registries.iter().enumerate() {
            let layout = self.running.site.directory.path().join(format!("out-{place}"));
            registry.pull("apps/a:1", &layout);
            assert_eq!(images::verify(&layout), self.root);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_region_that_may_feed_one_at_a_time_is_helped_by_those_that_have_the_image() {
    let fixture = Fixture::build("egress_copies = 1", "").await;
    fixture.synchronized().await;
    // The home region serves one region at a time. From the second round on, a region that has the image also serves
    // one.
    let from_others: u64 = fixture.proxies[1..].iter().map(Proxy::down).sum();
    assert!(from_others >= SIZE, "{from_others} bytes came from regions that had it");
    assert!(fixture.proxies[0].down() < 3 * SIZE, "{} bytes came from the home region", fixture.proxies[0].down());
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_near_region_feeds_before_a_far_home_and_the_home_when_it_fails() {
    let links = "[[link]]\nfrom = \"cn-beijing\"\nto = \"cn-shanghai\"\ncost = 1\n";
    let fixture = Fixture::build("", links).await;
    let request = fixture.running.synchronize("a", &["cn-beijing"]).await.expect("it is accepted");
    assert_eq!(fixture.running.finished(&request).await.state(), SynchronizationState::Succeeded);
    let (home, near) = (fixture.proxies[0].down(), fixture.proxies[1].down());
    let request = fixture.running.synchronize("a", &["cn-shanghai"]).await.expect("it is accepted");
    assert_eq!(fixture.running.finished(&request).await.state(), SynchronizationState::Succeeded);
    assert!(fixture.proxies[0].down() - home < SIZE / 10, "the home region was not read");
    assert!(fixture.proxies[1].down() - near >= SIZE);
    fixture.running.stop().await;

    let fixture = Fixture::build("", links).await;
    let request = fixture.running.synchronize("a", &["cn-beijing"]).await.expect("it is accepted");
    assert_eq!(fixture.running.finished(&request).await.state(), SynchronizationState::Succeeded);
    fixture.proxies[1].rule(|_| Action::Answer(StatusCode::FORBIDDEN, vec![], String::new()));
    let request = fixture.running.synchronize("a", &["cn-shanghai"]).await.expect("it is accepted");
    let done = fixture.running.finished(&request).await;
    assert_eq!((done.state(), done.regions[0].attempt), (SynchronizationState::Succeeded, 1), "{done:?}");
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_at_one_mebibyte_a_second_holds_nobody() {
    let registry = Registry::start().await;
    let proxy =
        Proxy::start(
            registry.address,
            |request: &ReceivedRequest| {
                if request.writes_blob() { Action::Throttle(1 << 20) } else { Action::Pass }
            },
        )
        .await;
    let mut site = Site::new().with("cn-shenzhen", proxy.store("apps"), "");
    // The lease does not expire on a busy machine: the test checks whether a slow region loses an attempt.
    site.worker = site.worker.replace("lease_ms = 10000", "lease_ms = 30000\npatience_ms = 500");
    let running = site.start().await;
    let app = running.add("a", &[noise(40 << 20, 1), noise(1 << 20, 2)]).await;
    let request = running.synchronize(&app, &[]).await.expect("it is accepted");
    let synchronization = until("the other regions", async || {
        let synchronization = running.get(&request).await;
        let is_available = |name: &str| {
            synchronization
                .regions
                .iter()
                .any(|region| region.region_id == name && region.state() == RegionState::Available)
        };
        (is_available("cn-beijing") && is_available("cn-shanghai")).then_some(synchronization)
    })
    .await;
    let slow = synchronization.regions.iter().find(|region| region.region_id == "cn-shenzhen").expect("the region");
    assert_eq!(slow.state(), RegionState::Copying, "{slow:?}");
    assert!(proxy.up() < 10 << 20, "the others waited until it had {} bytes", proxy.up());
    proxy.rule(|_| Action::Pass);
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions.iter().all(|region| region.attempt == 1), "{done:?}");
    running.stop().await;
}

/// While another region has the complete image, the home region may be unavailable or have lost a blob.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_its_home_has_lost_comes_from_another_region_that_has_it() {
    let lose: [fn(&std::path::Path); 2] = [
        |image| {
            let blobs =
                std::fs::read_dir(image.join("blobs/sha256")).expect("blobs").map(|blob| blob.expect("a blob").path());
            let layer = blobs.max_by_key(|path| path.metadata().expect("a file").len()).expect("a layer");
            std::fs::remove_file(layer).expect("it was there");
        },
        |image| std::fs::rename(image, image.with_file_name("elsewhere")).expect("it was there"),
    ];
    for lose in lose {
        let running = Site::new().start().await;
        let app = running.add("a", &[noise(300_000, 1), noise(3_000, 2)]).await;
        let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
        assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);
        lose(&running.site.image(HOME, "a"));
        let request = running.synchronize(&app, &["cn-shanghai", "cn-shenzhen"]).await.expect("it is accepted");
        let done = running.finished(&request).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
        for region in ["cn-shanghai", "cn-shenzhen"] {
            images::verify(&running.site.image(region, "a"));
        }
        running.stop().await;
    }
}

/// If no region has the image, the error is the home region's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_no_region_has_any_more_fails_with_the_reason() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(3_000, 2)]).await;
    std::fs::remove_dir_all(running.site.image(HOME, "a")).expect("it was there");
    let request = running.synchronize(&app, &[]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Failed);
    for region in &done.regions {
        let error = region.error.as_ref().expect("a reason");
        let reason = Reason::Code(ErrorCode::ImageNotFound.into());
        assert_eq!(error.reason, Some(reason), "{error:?}");
        assert!(error.message.contains(HOME), "{error:?}");
    }
    running.stop().await;
}
