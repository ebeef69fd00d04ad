//! Registries that deviate from the specification. Images arrive nevertheless, the service remembers the deviation, and
//! it sends only the bytes of rejected requests twice.

use appferry::contract::v1::{RegionSynchronization, SynchronizationState};
use http::{Method, StatusCode};

use crate::harness::{
    images::{self, noise},
    proxy::{Action, Proxy},
    quirks::{
        ARTIFACTORY, ECR, GAR, GHCR, GITLAB, HARBOR, LIMITED, PULP, Quirks, SPECIFIED, TABLE, TELLING, Takes,
        server::{QuirkyRegistry, ReceivedRequest},
    },
    site::{HOME, Running, Site, register},
};

const MIB: usize = 1 << 20;
const CHUNK: u64 = 64 << 20;
/// The size of a blob that is larger than the initial chunk size, in bytes.
const LARGE: usize = 66 * MIB;
const TARGET: &str = "cn-beijing";

/// Copies an image to a region, which must succeed.
async fn synchronized(running: &Running, app: &str, region: &str, registry: &str) -> RegionSynchronization {
    let request = running.synchronize(app, &[region]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{registry}: {done:?}");
    done.regions[0].clone()
}

/// Starts an emulated registry, and a service with a directory as home region that copies to it.
async fn to(quirks: Quirks) -> (QuirkyRegistry, Running) {
    let registry = QuirkyRegistry::start(quirks).await;
    let running = Site::new().with(TARGET, registry.store("apps"), "").start().await;
    (registry, running)
}

/// Returns the requests that contain bytes of a blob.
fn sent(requests: &[ReceivedRequest]) -> Vec<&ReceivedRequest> {
    let has_bytes = |request: &&ReceivedRequest| request.bytes > 0 && request.path.contains("/blobs/uploads/");
    requests.iter().filter(has_bytes).collect()
}

fn bytes(requests: &[ReceivedRequest]) -> u64 {
    sent(requests).iter().map(|request| request.bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_known_registry_is_written_and_read() {
    let (large, small) = (noise(LARGE, 1), noise(300_000, 2));
    for quirks in TABLE {
        let name = format!("{} ({})", quirks.registry, quirks.report);
        let (registry, running) = to(quirks).await;
        let app = running.add("a", &[large.clone(), small.clone()]).await;
        synchronized(&running, &app, TARGET, &name).await;
        let root = images::verify(&running.site.image(HOME, "a"));
        assert_eq!(registry.unfinished(), 0, "{name}");
        running.stop().await;

        // Copies the image from there to a directory, and to another repository of the same registry.
        let site = Site::new().with(HOME, registry.store("apps"), "").with(TARGET, registry.store("others"), "");
        let running = site.start().await;
        let same = register(&mut running.images().await, &app).await;
        synchronized(&running, &same, "cn-shanghai", &name).await;
        assert_eq!(images::verify(&running.site.image("cn-shanghai", &same)), root, "{name}");
        synchronized(&running, &same, TARGET, &name).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_tried_in_another_way_and_not_again() {
    for quirks in [GAR, GHCR] {
        let (registry, running) = to(quirks).await;
        let app = running.add("a", &[noise(LARGE, 1), noise(300_000, 2)]).await;
        let done = synchronized(&running, &app, TARGET, quirks.registry).await;
        assert_eq!(done.attempt, 1, "a rejected upload mode is no failed attempt");
        let requests = registry.requests();
        let refused = sent(&requests).into_iter().filter(|request| !request.status.is_success()).count();
        assert_eq!(refused, 1, "{requests:?}");
        assert!(bytes(&requests) <= LARGE as u64 + CHUNK + 400_000, "{} bytes were sent", bytes(&requests));

        // The next blob, and the first one after a restart, are sent in the mode that works.
        let app = running.add("b", &[noise(LARGE, 3)]).await;
        synchronized(&running, &app, TARGET, quirks.registry).await;
        let running = running.stop().await.start().await;
        let app = running.add("c", &[noise(LARGE, 4)]).await;
        synchronized(&running, &app, TARGET, quirks.registry).await;
        let requests = registry.requests();
        assert!(sent(&requests).iter().all(|request| request.status.is_success()), "{requests:?}");
        assert!(bytes(&requests) <= 2 * LARGE as u64 + 10_000, "{} bytes were sent", bytes(&requests));
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_is_refused_or_not_looked_at_is_followed_by_a_patch() {
    for (quirks, in_vain) in [(ARTIFACTORY, 1), (PULP, 2)] {
        let (registry, running) = to(quirks).await;
        // Copies one image at a time, so that the second copy uses the upload mode that the first one found.
        for (seed, name) in ["a", "b"].into_iter().enumerate() {
            let app = running.add(name, &[noise(300_000, seed as u64)]).await;
            synchronized(&running, &app, TARGET, quirks.registry).await;
        }
        let requests = registry.requests();
        let refused = sent(&requests).into_iter().filter(|request| !request.status.is_success()).count();
        // The configuration may have been sent concurrently with the layer.
        assert!((in_vain..=2 * in_vain).contains(&refused), "{refused}: {requests:?}");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_as_large_as_the_registry_takes_them() {
    let chunks = async |quirks: Quirks| {
        let (registry, running) = to(quirks).await;
        let app = running.add("a", &[noise(LARGE, 1)]).await;
        synchronized(&running, &app, TARGET, quirks.registry).await;
        running.stop().await;
        let requests = registry.requests();
        let taken = sent(&requests).into_iter().filter(|request| request.status.is_success() && request.bytes > 10_000);
        taken.map(|request| (request.method.clone(), request.bytes)).collect::<Vec<_>>()
    };
    let mib = |method: Method, bytes: u64| (method, bytes << 20);
    let (patch, put) = (Method::PATCH, Method::PUT);
    // Chunks have the announced maximum size.
    let announced = chunks(TELLING).await;
    assert_eq!(
        announced,
        [20, 20, 20].map(|n| mib(patch.clone(), n)).into_iter().chain([mib(put.clone(), 6)]).collect::<Vec<_>>()
    );
    // Chunks have the announced minimum size.
    let large = chunks(Quirks { min_chunk: Some(65 << 20), ..SPECIFIED }).await;
    assert_eq!(large, [mib(patch.clone(), 65), mib(put.clone(), 1)]);
    // An unannounced limit is discovered.
    let discovered = chunks(LIMITED).await;
    assert_eq!(discovered, [4; 16].map(|n| mib(patch.clone(), n)).into_iter().chain([mib(put, 2)]).collect::<Vec<_>>());
}

/// If the reported offset is wrong, only the final digest decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_misreports_offsets_is_sent_everything_once() {
    let size = 140 * MIB;
    let (registry, running) = to(ECR).await;
    let app = running.add("a", &[noise(size, 1)]).await;
    assert_eq!(synchronized(&running, &app, TARGET, ECR.registry).await.attempt, 1);
    let requests = registry.requests();
    assert!(bytes(&requests) < size as u64 + 10_000, "{requests:?}");
    running.stop().await;
}

/// After an interruption, the reported offset is ignored as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_offsets_are_misreported_is_resumed_where_it_broke_off() {
    let size = 140 * MIB;
    let registry = QuirkyRegistry::start(ECR).await;
    // The first two PUT requests belong to the configuration, which is too small to be interrupted, and to the end of
    // the layer.
    let mut puts = 0;
    let proxy = Proxy::start(registry.address, move |request| {
        let is_put = request.method == Method::PUT && request.path.contains("/blobs/uploads/");
        puts += usize::from(is_put);
        if is_put && puts <= 2 { Action::CutRequest(MIB as u64) } else { Action::Pass }
    })
    .await;
    let running = Site::new().with(TARGET, proxy.store("apps"), "").start().await;
    let app = running.add("a", &[noise(size, 1)]).await;
    synchronized(&running, &app, TARGET, ECR.registry).await;
    assert!(proxy.up() < (size + 3 * MIB) as u64, "{} bytes were sent", proxy.up());
    running.stop().await;
}

/// When a request is redirected after its bytes were sent, the bytes are read again and sent to the new location.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_redirected_are_sent_again() {
    let streams = Quirks { put: Takes::None(StatusCode::METHOD_NOT_ALLOWED), ..SPECIFIED };
    for quirks in [SPECIFIED, streams, ECR] {
        let quirks = Quirks { redirects_uploads: true, ..quirks };
        let (registry, running) = to(quirks).await;
        // These layers are sent in one request, in chunks, and from memory.
        let layers = [noise(3 * MIB, 1), noise(LARGE, 2), noise(300_000, 3)];
        let total: u64 = layers.iter().map(|layer| layer.len() as u64).sum();
        let app = running.add("a", &layers).await;
        let done = synchronized(&running, &app, TARGET, quirks.registry).await;
        assert_eq!(done.attempt, 1, "a redirect is no failed attempt: {done:?}");
        let root = images::verify(&running.site.image(HOME, "a"));
        let requests = registry.requests();
        let taken = sent(&requests).into_iter().filter(|seen| seen.status.is_success()).map(|seen| seen.bytes);
        let taken: u64 = taken.sum();
        // Bytes sent in a mode that the registry rejects are sent once more.
        assert!(
            quirks.put != Takes::All || (total..total + 10_000).contains(&taken),
            "{taken} bytes were taken: {requests:?}"
        );
        assert_eq!(registry.unfinished(), 0, "{requests:?}");
        running.stop().await;
        let site = Site::new().with(HOME, registry.store("apps"), "");
        let running = site.start().await;
        let same = register(&mut running.images().await, &app).await;
        synchronized(&running, &same, "cn-shanghai", quirks.registry).await;
        assert_eq!(images::verify(&running.site.image("cn-shanghai", &same)), root);
        running.stop().await;
    }
}

/// A mount is only an optimization: the blob is uploaded if the mount fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_fails_is_followed_by_an_upload() {
    let refusals = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE, StatusCode::CREATED];
    let odd = refusals.map(|status| Quirks { registry: "one that fails to mount", mount: Some(status), ..SPECIFIED });
    for quirks in odd.into_iter().chain([GITLAB, HARBOR]) {
        let registry = QuirkyRegistry::start(Quirks { lags: 0, ..quirks }).await;
        let site = Site::new().with(TARGET, registry.store("apps"), "");
        let running = site.start().await;
        let app = running.add("a", &[noise(300_000, 1)]).await;
        synchronized(&running, &app, TARGET, quirks.registry).await;
        running.stop().await;
        let site = Site::new().with(HOME, registry.store("apps"), "").with(TARGET, registry.store("others"), "");
        let running = site.start().await;
        let same = register(&mut running.images().await, &app).await;
        registry.requests();
        let done = synchronized(&running, &same, TARGET, quirks.registry).await;
        assert_eq!(done.attempt, 1, "{done:?}");
        let requests = registry.requests();
        assert!(requests.iter().any(|request| request.path.contains("from=apps%2F")), "{requests:?}");
        assert!(bytes(&requests) >= 300_000, "{requests:?}");
        running.stop().await;
    }
}

/// A registry may claim at the beginning of an upload that it has the blob although it lacks it. The service then sends
/// the blob, and does not ask that registry in this way again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_says_to_have_what_it_has_not_is_sent_it() {
    let (registry, running) = to(Quirks { mount: Some(StatusCode::CREATED), ..SPECIFIED }).await;
    for (seed, name) in ["a", "b", "c"].into_iter().enumerate() {
        let app = running.add(name, &[noise(20_000, seed as u64)]).await;
        assert_eq!(synchronized(&running, &app, TARGET, "one that lies").await.attempt, 1);
        let requests = registry.requests();
        let mounts = requests.iter().filter(|seen| seen.path.contains("mount=")).count();
        // The first image suggests that the registry reports existing blobs; the second shows that it does not.
        assert!(if name == "c" { mounts == 0 } else { mounts >= 1 }, "{name}: {requests:?}");
        assert!(bytes(&requests) >= 20_000, "{name}: {requests:?}");
    }
    running.stop().await;
}

/// A registry may begin an upload even for a blob that it has. The service asks such a registry once, and aborts that
/// upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_mounts_nothing_is_asked_what_it_has() {
    let (registry, running) = to(Quirks { mount: Some(StatusCode::ACCEPTED), ..SPECIFIED }).await;
    let mut mounts = 0;
    for (seed, name) in ["a", "b"].into_iter().enumerate() {
        let app = running.add(name, &[noise(20_000, seed as u64)]).await;
        synchronized(&running, &app, TARGET, "one that mounts nothing").await;
        mounts += registry.requests().iter().filter(|seen| seen.path.contains("mount=")).count();
    }
    assert_eq!(mounts, 1);
    running.stop().await;
    assert_eq!(registry.unfinished(), 0);
}
