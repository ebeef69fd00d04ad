//! Content that a region already has.

use std::fs;

use appferry::contract::v1::{Intactness, RegionState, RemoveImageRequest, Verification, VerifyImageRequest};
use http::{Method, StatusCode};
use object_store::ObjectStoreExt as _;

use super::{REGION, TRUSTED, VERIFIED, between, image, layout, reason, register, says, synchronized};
use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, noise},
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    site::{HOME, Site},
};

/// Changes a byte of a file, keeping its size.
fn damage(file: &std::path::Path) {
    let mut bytes = fs::read(file).expect("it is there");
    bytes[1_000] ^= 1;
    fs::write(file, bytes).expect("it is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_pushed_is_trusted_and_what_is_written_is_verified() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = between(&source, target.store("apps"), "");
    let ours = layout(&site, "ours", &[noise(200_000, 1)]);
    let theirs = layout(&site, "theirs", &[noise(200_000, 2)]);
    source.push(&ours, "apps/ours:1");
    source.push(&theirs, "apps/theirs:1");
    target.push(&theirs, "apps/theirs:1");
    let running = site.start().await;
    for id in ["ours", "theirs"] {
        register(&running, id, &format!("{}/apps/{id}:1", source.address)).await;
    }
    assert_eq!(says(&synchronized(&running, "ours", REGION).await), VERIFIED);
    assert_eq!(says(&synchronized(&running, "theirs", REGION).await), TRUSTED);
    for (id, expected) in [("ours", Verification::Verified), ("theirs", Verification::Trusted)] {
        let shown = image(&running, id).await;
        let info = shown.additional_regions_info.iter().find(|info| info.region_id == REGION).expect("the region");
        assert_eq!(info.verification(), expected);
        let home = shown.additional_regions_info.iter().find(|info| info.region_id == HOME).expect("the region");
        assert_eq!((home.status(), home.verification()), (RegionState::Available, Verification::Unspecified));
    }
    running.stop().await;
}

/// The tag and its manifest exist, but a blob is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_others_pushed_is_not_believed_to_be_whole() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = between(&source, target.store("apps"), "");
    let made = layout(&site, "made", &[noise(200_000, 1), noise(50_000, 2)]);
    source.push(&made, "apps/a:1");
    target.push(&made, "apps/a:1");
    let lost = images::layers(&made)[0].clone();
    fs::remove_file(target.blob(&lost)).expect("it was there");
    let running = site.start().await;
    register(&running, "a", &format!("{}/apps/a:1", source.address)).await;
    assert_eq!(says(&synchronized(&running, "a", REGION).await), TRUSTED);
    let out = running.site.directory.path().join("out");
    target.pull("apps/a:1", &out);
    images::verify(&out);

    // VerifyImage reads the existing content and checks its digests.
    let request = VerifyImageRequest { image_id: "a".into(), region_ids: vec![REGION.into()] };
    let mut results = running.images().await.verify_image(request).await.expect("it is verified").into_inner();
    while let Some(region) = results.message().await.expect("it goes on") {
        assert_eq!(region.intactness(), Intactness::Intact, "{region:?}");
    }
    let shown = image(&running, "a").await;
    let info = shown.additional_regions_info.iter().find(|info| info.region_id == REGION).expect("the region");
    assert_eq!((info.status(), info.verification()), VERIFIED);
    running.stop().await;
}

/// Copies to a region with the default setting, and to a region that reads existing content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_blob_of_the_right_size_is_never_verified() {
    // One blob is checked separately, the other when its upload begins.
    for size in [300_000, 20_000] {
        a_damaged_blob_is_never_verified(size).await;
    }
}

async fn a_damaged_blob_is_never_verified(size: usize) {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let mut site = between(&source, target.store("apps"), "");
    site.more =
        format!("[[region]]\nid = \"reading\"\nstore = \"{}\"\nverify_existing = \"once\"\n", target.store("apps"));
    let shared = noise(size, 7);
    let first = layout(&site, "first", &[noise(20_000, 1), shared.clone()]);
    let second = layout(&site, "second", &[shared.clone(), noise(4_000, 2)]);
    source.push(&first, "apps/a:1");
    source.push(&second, "apps/a:2");
    let running = site.start().await;
    register(&running, "one", &format!("{}/apps/a:1", source.address)).await;
    register(&running, "two", &format!("{}/apps/a:2", source.address)).await;
    assert_eq!(says(&synchronized(&running, "one", REGION).await), VERIFIED);
    damage(&target.blob(&images::digest(&shared)));
    // The previous copy wrote the blob, which has not been read since.
    assert_eq!(says(&synchronized(&running, "two", REGION).await), TRUSTED);
    // This registry ignores uploads of a blob that it has.
    let read = synchronized(&running, "two", "reading").await;
    assert_eq!(read.state(), RegionState::Failed, "{read:?}");
    assert!(reason(&read).contains("keeps the damaged one"), "{read:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_is_read_once_and_verified() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let proxy = Proxy::start(target.address, |_| Action::Pass).await;
    let site = between(&source, proxy.store("apps"), "verify_existing = \"once\"");
    let shared = noise(3 << 20, 7);
    for (tag, seed) in [("1", 1), ("2", 2)] {
        let made = layout(&site, tag, &[shared.clone(), noise(4_000, seed)]);
        source.push(&made, &format!("apps/a:{tag}"));
        target.push(&made, &format!("apps/a:{tag}"));
    }
    let running = site.start().await;
    register(&running, "one", &format!("{}/apps/a:1", source.address)).await;
    register(&running, "two", &format!("{}/apps/a:2", source.address)).await;
    let reads = || proxy.requests().iter().filter(|request| request.reads_blob()).count();
    assert_eq!(says(&synchronized(&running, "one", REGION).await), VERIFIED);
    // Both layers and the configuration were read.
    assert_eq!(reads(), 3);
    let before = proxy.down();
    assert_eq!(says(&synchronized(&running, "two", REGION).await), VERIFIED);
    assert_eq!(reads(), 4, "its own layer; the other one and the configuration are known");
    assert!(proxy.down() - before < 1 << 20, "{} bytes were read", proxy.down() - before);
    running.stop().await;
}

/// The record outlives the image, as its blobs do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_service_wrote_is_known_by_one_look_at_the_tag() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let proxy = Proxy::start(target.address, |_| Action::Pass).await;
    let site = between(&source, proxy.store("apps"), "");
    let made = layout(&site, "made", &[noise(200_000, 1), noise(300_000, 2), noise(10_000, 3)]);
    source.push(&made, "apps/a:1");
    let running = site.start().await;
    let url = format!("{}/apps/a:1", source.address);
    register(&running, "a", &url).await;
    assert_eq!(says(&synchronized(&running, "a", REGION).await), VERIFIED);
    let remove = RemoveImageRequest { image_id: "a".into(), ..Default::default() };
    running.images().await.remove_image(remove).await.expect("it is removed");
    register(&running, "again", &url).await;
    let before = proxy.requests().len();
    let done = synchronized(&running, "again", REGION).await;
    assert_eq!((says(&done), done.bytes_copied), (VERIFIED, 0));
    let looks: Vec<ReceivedRequest> = proxy.requests().split_off(before);
    assert_eq!(looks.len(), 1, "{looks:?}");
    assert!(looks[0].method == Method::HEAD && looks[0].path.ends_with("/manifests/1"), "{looks:?}");
    running.stop().await;
}

/// A record does not apply to another store that replaces the original one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_store_is_another_one_is_looked_at() {
    let (source, target, other) = (Registry::start().await, Registry::start().await, Registry::start().await);
    let site = between(&source, target.store("apps"), "");
    let made = layout(&site, "made", &[noise(200_000, 1), noise(50_000, 2)]);
    source.push(&made, "apps/a:1");
    other.push(&made, "apps/a:1");
    fs::remove_file(other.blob(&images::layers(&made)[0])).expect("it was there");
    let running = site.start().await;
    let url = format!("{}/apps/a:1", source.address);
    register(&running, "a", &url).await;
    assert_eq!(says(&synchronized(&running, "a", REGION).await), VERIFIED);
    let mut site = running.stop().await;
    site.stores.retain(|(region, _)| *region != REGION);
    site.stores.push((REGION, other.store("apps")));
    let running = site.start().await;
    let remove = RemoveImageRequest { image_id: "a".into(), ..Default::default() };
    running.images().await.remove_image(remove).await.expect("it is removed");
    register(&running, "again", &url).await;
    assert_eq!(says(&synchronized(&running, "again", REGION).await), TRUSTED);
    let out = running.site.directory.path().join("out");
    other.pull("apps/a:1", &out);
    images::verify(&out);
    running.stop().await;
}

/// A retry trusts what the previous attempt wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_retried_ends_as_verified() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    // A manifest is rejected during the first attempt, and accepted during the second.
    let mut broken = true;
    let proxy = Proxy::start(target.address, move |request: &ReceivedRequest| {
        let put = request.method == Method::PUT && request.path.contains("/manifests/");
        if put && std::mem::take(&mut broken) {
            let later = vec![("retry-after", "6".to_owned())];
            return Action::Answer(StatusCode::SERVICE_UNAVAILABLE, later, String::new());
        }
        Action::Pass
    })
    .await;
    let site = between(&source, proxy.store("apps"), "");
    let made = layout(&site, "made", &[noise(200_000, 1), noise(300_000, 2)]);
    source.push(&made, "apps/a:1");
    let running = site.start().await;
    register(&running, "a", &format!("{}/apps/a:1", source.address)).await;
    let done = synchronized(&running, "a", REGION).await;
    assert_eq!((says(&done), done.attempt), (VERIFIED, 2));
    assert_eq!(done.bytes_copied + done.bytes_skipped, done.bytes_total);
    assert!(done.bytes_skipped > 500_000, "{done:?}");
    running.stop().await;
}

/// Buckets: existing content is trusted or read, as configured; damage is found by reading, and repaired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_treated_as_a_registry_is() {
    let bucket = Bucket::start().await;
    let keys = bucket.keys(bucket.address);
    let running = Site::new()
        .with(REGION, format!("s3://{BUCKET}/plain"), keys.clone())
        .with("cn-shanghai", format!("s3://{BUCKET}/reading"), format!("{keys}\nverify_existing = \"once\""))
        .start()
        .await;
    let layers = [noise(200_000, 1), noise(300_000, 2)];
    running.add("a", &layers).await;
    running.add("fresh", &[noise(10_000, 3)]).await;
    let mut bytes = layers[0].clone();
    bytes[1_000] ^= 1;
    for prefix in ["plain", "reading"] {
        for (digest, content) in [(images::digest(&layers[0]), &bytes), (images::digest(&layers[1]), &layers[1])] {
            let path = format!("{prefix}/a/blobs/sha256/{}", digest.trim_start_matches("sha256:"));
            bucket.objects().put(&path.into(), content.clone().into()).await.expect("it is put");
        }
    }
    assert_eq!(says(&synchronized(&running, "fresh", REGION).await), VERIFIED);
    assert_eq!(says(&synchronized(&running, "a", REGION).await), TRUSTED);
    let read = synchronized(&running, "a", "cn-shanghai").await;
    assert_eq!(says(&read), VERIFIED);
    assert!(read.bytes_copied > 200_000 && read.bytes_copied < 300_000, "{read:?}");
    let out = running.site.directory.path().join("out");
    bucket.pull("reading/a", &out).await;
    images::verify(&out);
    running.stop().await;
}
