//! Failures of the network and of registries: either the right bytes arrive, or the region reports the reason. A region
//! is never AVAILABLE by mistake, and no upload is left behind.

use std::time::Duration;

use appferry::contract::v1::{RegionState, Synchronization, SynchronizationState};
use http::{Method, StatusCode};

use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, noise},
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    resumable_registry::ResumableRegistry,
    site::{HOME, Running, Site, container},
    until,
};

const MIB: usize = 1 << 20;
const APP: &str = "a";

/// A source registry with an image and a target registry, each behind a proxy.
struct Fixture {
    running: Running,
    _source: Registry,
    target: Registry,
    before_source: Proxy,
    before_target: Proxy,
    root: String,
}

impl Fixture {
    async fn start(layers: &[Vec<u8>]) -> Self {
        let (source, target) = (Registry::start().await, Registry::start().await);
        let before_source = Proxy::start(source.address, |_| Action::Pass).await;
        let before_target = Proxy::start(target.address, |_| Action::Pass).await;
        let mut site =
            Site::new().with(HOME, before_source.store("apps"), "").with("cn-beijing", before_target.store("apps"), "");
        site.worker.push_str("\nstall_ms = 2000");
        let layout = site.directory.path().join("made");
        let root = images::write(&layout, layers);
        source.push(&layout, "apps/a:1");
        let running = site.start().await;
        let url = format!("{}/apps/a:1", before_source.address);
        running.images().await.add_image(container(APP, &url)).await.expect("it is registered");
        Self { running, _source: source, target, before_source, before_target, root }
    }

    async fn carry(&self) -> Synchronization {
        let request = self.running.synchronize(APP, &["cn-beijing"]).await.expect("it is accepted");
        self.running.finished(&request).await
    }

    fn verify(&self) {
        let layout = self.running.site.directory.path().join("out");
        self.target.pull("apps/a:1", &layout);
        assert_eq!(images::verify(&layout), self.root);
    }

    async fn arrives(self, what: &str) {
        let done = self.carry().await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{what}: {done:?}");
        self.verify();
        self.running.stop().await;
    }
}

/// A predicate on requests.
type Matches = fn(&ReceivedRequest) -> bool;

/// Applies `action` to the first `count` requests that match, and passes the others.
fn first(count: usize, matches: Matches, action: &Action) -> impl FnMut(&ReceivedRequest) -> Action + Send + 'static {
    let (action, mut done) = (action.clone(), 0);
    move |request| {
        if done < count && matches(request) {
            done += 1;
            return action.clone();
        }
        Action::Pass
    }
}

fn answer(status: u16, headers: Vec<(&'static str, String)>) -> Action {
    let status = StatusCode::from_u16(status).expect("a status");
    Action::Answer(status, headers, r#"{"errors":[{"code":"UNKNOWN","message":"out of order"}]}"#.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_stumbles_is_read_on_from_where_it_broke_off() {
    for action in [
        Action::CutAnswer(MIB as u64),
        Action::CutAnswer(0),
        answer(503, vec![]),
        answer(500, vec![]),
        answer(429, vec![("retry-after", "1".to_owned())]),
        Action::Delay(Duration::from_millis(300)),
        Action::Hang,
    ] {
        let fixture = Fixture::start(&[noise(3 * MIB, 1), noise(50_000, 2)]).await;
        fixture.before_source.rule(first(2, ReceivedRequest::reads_blob, &action));
        let down = fixture.before_source.down();
        let done = fixture.carry().await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{action:?}: {done:?}");
        assert_eq!(done.regions[0].attempt, 1, "{action:?}: within one attempt");
        let read = fixture.before_source.down() - down;
        assert!(read < 3_300_000, "{action:?}: {read} bytes were read: it restarted");
        fixture.verify();
        fixture.running.stop().await;
    }
}

/// A blob above 64 MiB is read in several concurrent ranges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_breaks_off_is_read_on() {
    let fixture = Fixture::start(&[noise(70 * MIB, 1)]).await;
    fixture.before_source.rule(first(3, ReceivedRequest::reads_blob, &Action::CutAnswer(3 * MIB as u64)));
    fixture.arrives("ranges that break off").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_stumbles_gets_the_image_all_the_same() {
    let begins = |request: &ReceivedRequest| request.method == Method::POST && request.path.contains("/blobs/uploads/");
    let writes_manifest =
        |request: &ReceivedRequest| request.method == Method::PUT && request.path.contains("/manifests/");
    let looks = |request: &ReceivedRequest| request.method == Method::HEAD;
    let cases: [(&str, Matches, Action); 9] = [
        ("a body that is cut off", ReceivedRequest::writes_blob, Action::CutRequest(MIB as u64)),
        ("a body that is corrupted", ReceivedRequest::writes_blob, Action::CorruptRequest(1_000)),
        ("503 to a body", ReceivedRequest::writes_blob, answer(503, vec![])),
        ("500 to a body", ReceivedRequest::writes_blob, answer(500, vec![])),
        ("429 to a body", ReceivedRequest::writes_blob, answer(429, vec![("retry-after", "1".to_owned())])),
        ("503 to an upload's beginning", begins, answer(503, vec![])),
        ("429 to an upload's beginning", begins, answer(429, vec![("retry-after", "1".to_owned())])),
        ("500 to a manifest", writes_manifest, answer(500, vec![])),
        ("503 to a look", looks, answer(503, vec![])),
    ];
    for (what, matches, action) in cases {
        let fixture = Fixture::start(&[noise(2 * MIB, 1), noise(50_000, 2)]).await;
        fixture.before_target.rule(first(2, matches, &action));
        fixture.arrives(what).await;
    }
}

/// A registry may fail to find a blob that it has, for example while another client writes the same blob, and find it
/// later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_whose_blobs_are_not_found_is_sent_again() {
    let fixture = Fixture::start(&[noise(50_000, 1)]).await;
    let body = r#"{"errors":[{"code":"DIGEST_INVALID","message":""},{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}"#;
    let refused = Action::Answer(StatusCode::BAD_REQUEST, vec![], body.to_owned());
    fixture.before_target.rule(first(
        1,
        |request| request.method == Method::PUT && request.path.contains("/manifests/"),
        &refused,
    ));
    fixture.arrives("a blob that was not found").await;
}

/// A registry that was killed while it stored a manifest may fail to read it until it receives the manifest again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_a_registry_cannot_tell_of_is_sent_again() {
    let fixture = Fixture::start(&[noise(50_000, 1)]).await;
    let mut sent = false;
    fixture.before_target.rule(move |request| {
        sent |= request.method == Method::PUT && request.path.contains("/manifests/");
        if !sent && request.method == Method::HEAD && request.path.contains("/manifests/sha256:") {
            Action::Answer(StatusCode::INTERNAL_SERVER_ERROR, vec![], String::new())
        } else {
            Action::Pass
        }
    });
    fixture.arrives("a manifest that is half there").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_are_cut_off_at_a_registry_that_forgets_them_are_sent_anew() {
    let fixture = Fixture::start(&[noise(70 * MIB, 1)]).await;
    fixture.before_target.rule(first(1, ReceivedRequest::writes_blob, &Action::CutRequest(5 * MIB as u64)));
    fixture.arrives("a chunk that is cut off").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_bytes_are_wrong_is_never_available() {
    let fixture = Fixture::start(&[noise(3 * MIB, 1), noise(50_000, 2)]).await;
    fixture.before_source.rule(
        |request: &ReceivedRequest| if request.reads_blob() { Action::CorruptAnswer(1_000) } else { Action::Pass },
    );
    let done = fixture.carry().await;
    assert_eq!(done.regions[0].state(), RegionState::Failed);
    let message = &done.regions[0].error.as_ref().expect("a reason").message;
    assert!(message.contains("does not have that digest") && message.contains(HOME), "{message}");
    let client = reqwest::Client::new();
    let tag = format!("http://{}/v2/apps/a/manifests/1", fixture.target.address);
    assert_eq!(client.get(tag).send().await.expect("an answer").status(), StatusCode::NOT_FOUND);
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_restarts_gets_the_image() {
    let mut fixture = Fixture::start(&(0..8).map(|seed| noise(2 * MIB, seed)).collect::<Vec<_>>()).await;
    fixture
        .before_target
        .rule(|request: &ReceivedRequest| if request.writes_blob() { Action::Throttle(4 << 20) } else { Action::Pass });
    let request = fixture.running.synchronize(APP, &["cn-beijing"]).await.expect("it is accepted");
    until("a part of the blob", async || (fixture.before_target.up() > 3 << 20).then_some(())).await;
    fixture.target.restart().await;
    fixture.before_target.rule(|_| Action::Pass);
    let done = fixture.running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    fixture.verify();
    fixture.running.stop().await;
}

/// The proxy issues tokens and requires the latest one; every tenth request invalidates it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_run_out_on_the_way_are_renewed() {
    let fixture = Fixture::start(&(0..20).map(|seed| noise(200_000, seed)).collect::<Vec<_>>()).await;
    let realm = format!("http://{}/token", fixture.before_target.address);
    let (mut token, mut asked, mut refused) = (0, 0, 0);
    fixture.before_target.rule(move |request: &ReceivedRequest| {
        if request.path.starts_with("/token") {
            assert!(request.path.contains("scope=repository%3Aapps%2Fa%3Apull%2Cpush"), "{}", request.path);
            return Action::Answer(StatusCode::OK, vec![], format!(r#"{{"token":"token-{token}","expires_in":300}}"#));
        }
        asked += 1;
        if asked % 40 == 0 {
            token += 1;
        }
        if request.authorization.as_deref() == Some(&format!("Bearer token-{token}")) {
            return Action::Pass;
        }
        refused += 1;
        assert!(refused < 200, "it never ends");
        answer(401, vec![("www-authenticate", format!(r#"Bearer realm="{realm}",service="registry""#))])
    });
    fixture.arrives("tokens that run out").await;
}

/// An upload that will not be resumed is aborted, if the registry supports that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_upload_is_left_behind_by_a_copy_that_failed_or_was_canceled() {
    let fixture = Fixture::start(&[noise(70 * MIB, 1), noise(50_000, 2)]).await;
    fixture
        .before_target
        .rule(|request: &ReceivedRequest| if request.writes_blob() { answer(403, vec![]) } else { Action::Pass });
    let done = fixture.carry().await;
    assert_eq!(done.regions[0].state(), RegionState::Failed);
    assert!(done.regions[0].error.as_ref().expect("a reason").message.contains("403"), "{done:?}");
    until("the end of the uploads", async || fixture.target.unfinished().is_empty().then_some(())).await;
    drop(fixture);

    let (resumable_registry, source) = (ResumableRegistry::start().await, Registry::start().await);
    let proxy = Proxy::start(resumable_registry.address, |request: &ReceivedRequest| {
        if request.writes_blob() { Action::Throttle(20 << 20) } else { Action::Pass }
    })
    .await;
    let site = Site::new().with(HOME, source.store("apps"), "").with("cn-beijing", proxy.store("apps"), "");
    let layout = site.directory.path().join("made");
    images::write(&layout, &[noise(70 * MIB, 1)]);
    source.push(&layout, "apps/a:1");
    let running = site.start().await;
    let url = format!("{}/apps/a:1", source.address);
    running.images().await.add_image(container(APP, &url)).await.expect("it is registered");
    let request = running.synchronize(APP, &["cn-beijing"]).await.expect("it is accepted");
    until("a part of the blob", async || (proxy.up() > 2 << 20).then_some(())).await;
    let cancel = appferry::contract::v1::CancelSynchronizationRequest { request_id: request };
    running.app_sync().await.cancel_synchronization(cancel).await.expect("it is canceled");
    until("the upload's end", async || (resumable_registry.unfinished() == 0).then_some(())).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_refuses_parts_keeps_none() {
    let bucket = Bucket::start().await;
    let proxy = Proxy::start(bucket.address, |request: &ReceivedRequest| {
        let fourth = request.method == Method::PUT && request.path.contains("partNumber=4");
        if fourth { answer(403, vec![]) } else { Action::Pass }
    })
    .await;
    let site = Site::new().with("cn-beijing", format!("s3://{BUCKET}/x"), bucket.keys(proxy.address));
    let running = site.start().await;
    let app = running.add(APP, &[noise(70 * MIB, 1)]).await;
    let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.regions[0].state(), RegionState::Failed, "{done:?}");
    until("the upload's end", async || (bucket.unfinished() == 0).then_some(())).await;

    proxy.rule(|_| Action::Pass);
    let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);
    running.stop().await;
}

/// Parts that the bucket already has are not sent again, even after a restart of the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_in_parts_outlives_its_worker() {
    let bucket = Bucket::start().await;
    let proxy = Proxy::start(bucket.address, |request: &ReceivedRequest| {
        if request.path.contains("partNumber=") { Action::Throttle(16 << 20) } else { Action::Pass }
    })
    .await;
    let site = Site::new().with("cn-beijing", format!("s3://{BUCKET}/x"), bucket.keys(proxy.address));
    let running = site.start().await;
    let app = running.add(APP, &[noise(70 * MIB, 1)]).await;
    let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    until("half of the blob", async || (proxy.up() > 45 << 20).then_some(())).await;
    let site = running.stop().await;
    proxy.rule(|_| Action::Pass);
    let running = site.start().await;
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions[0].bytes_skipped >= 16 << 20, "{done:?}");
    // Up to three parts of 8 MiB may have been in flight.
    assert!(proxy.up() <= (70 + 26) << 20, "{} bytes were sent", proxy.up());
    let layout = running.site.directory.path().join("out");
    bucket.pull("x/a", &layout).await;
    images::verify(&layout);
    running.stop().await;
}

/// The written part of a large blob in a directory is neither written again nor left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_in_a_directory_outlives_its_worker() {
    let source = Registry::start().await;
    let slow = |request: &ReceivedRequest| if request.reads_blob() { Action::Throttle(20 << 20) } else { Action::Pass };
    let proxy = Proxy::start(source.address, slow).await;
    let site = Site::new().with(HOME, proxy.store("apps"), "");
    let layout = site.directory.path().join("made");
    let root = images::write(&layout, &[noise(70 * MIB, 1)]);
    source.push(&layout, "apps/a:1");
    let running = site.start().await;
    running.images().await.add_image(container(APP, &format!("{}/apps/a:1", proxy.address))).await.expect("registered");
    let blobs = running.site.image("cn-beijing", "a").join("blobs/sha256");
    let begun = || {
        let files = std::fs::read_dir(&blobs).into_iter().flatten().flatten();
        let begun = files.filter(|file| file.file_name().to_string_lossy().ends_with(".begun"));
        begun.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).max()
    };
    let request = running.synchronize(APP, &["cn-beijing"]).await.expect("it is accepted");
    until("a part of the blob", async || begun().filter(|length| *length > 30 << 20)).await;
    let site = running.stop().await;
    let down = proxy.down();
    let running = site.start().await;
    until("the rest of the blob", async || (proxy.down() > down + (5 << 20)).then_some(())).await;
    let cancel = appferry::contract::v1::CancelSynchronizationRequest { request_id: request };
    running.app_sync().await.cancel_synchronization(cancel).await.expect("it is canceled");
    until("the removal of the leftovers", async || begun().is_none().then_some(())).await;

    proxy.rule(|_| Action::Pass);
    let request = running.synchronize(APP, &["cn-beijing"]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);
    assert_eq!(images::verify(&running.site.image("cn-beijing", "a")), root);

    // This copy is not canceled: it continues after the restart.
    proxy.rule(slow);
    let request = running.synchronize(APP, &["cn-shanghai"]).await.expect("it is accepted");
    let blobs = running.site.image("cn-shanghai", "a").join("blobs/sha256");
    let written = || {
        let files = std::fs::read_dir(&blobs).into_iter().flatten().flatten();
        files.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum::<u64>()
    };
    until("a part of the blob", async || (written() > 30 << 20).then_some(())).await;
    let site = running.stop().await;
    proxy.rule(|_| Action::Pass);
    let running = site.start().await;
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions[0].bytes_skipped > 25 << 20, "{done:?}");
    assert_eq!(images::verify(&running.site.image("cn-shanghai", "a")), root);
    running.stop().await;
}

/// A registry that keeps the received bytes of an upload does not receive them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_in_chunks_outlives_its_worker() {
    let resumable_registry = ResumableRegistry::start().await;
    let proxy = Proxy::start(resumable_registry.address, |request: &ReceivedRequest| {
        if request.writes_blob() { Action::Throttle(40 << 20) } else { Action::Pass }
    })
    .await;
    let running = Site::new().with("cn-beijing", proxy.store("apps"), "").start().await;
    let app = running.add(APP, &[noise(140 * MIB, 1)]).await;
    let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    until("half of the blob", async || (proxy.up() > 100 << 20).then_some(())).await;
    let site = running.stop().await;
    proxy.rule(|_| Action::Pass);
    let running = site.start().await;
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions[0].bytes_skipped >= 90 << 20, "{done:?}");
    assert!(proxy.up() <= 150 << 20, "{} bytes were sent", proxy.up());
    assert!(resumable_registry.has("a") && resumable_registry.unfinished() == 0);
    running.stop().await;
}
