//! Images with SHA-512 digests in every kind of store.

use std::{collections::BTreeSet, fs, sync::Arc};

use appferry::{
    contract::v1::{Intactness, VerifyImageRequest, VerifyImageResponse},
    domain::ImageName,
    storage::{Archive, MovedName, Source as _, verify},
};
use object_store::ObjectStoreExt as _;

use super::{LAYERS, MANIFEST, WHOLE, add, synchronized};
use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, Algorithms, noise},
    oci_registry::OciRegistry,
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    resumable_registry::ResumableRegistry,
    scripted_registry::{Behavior, ScriptedRegistry},
    site::{HOME, Running, Site},
    until,
};

const MIB: usize = 1 << 20;

async fn verified(running: &Running, app: &str) -> Vec<VerifyImageResponse> {
    let request = VerifyImageRequest { image_id: app.to_owned(), region_ids: Vec::new() };
    let mut stream = running.images().await.verify_image(request).await.expect("it is verified").into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await.expect("it goes on") {
        found.push(message);
    }
    found
}

async fn is_intact(running: &Running, app: &str) {
    let found = verified(running, app).await;
    assert_eq!(found.len(), 4);
    for region in &found {
        assert!(region.intactness() == Intactness::Intact && region.warnings.is_empty(), "{region:?}");
    }
}

/// Starts a service with a directory as home region and one region of each kind. The registry of go-containerregistry
/// supports both algorithms.
async fn house() -> (Running, Bucket, OciRegistry) {
    let (bucket, registry) = (Bucket::start().await, OciRegistry::start().await);
    let running = Site::new()
        .with("cn-beijing", registry.store("apps"), "")
        .with("cn-shanghai", format!("s3://{BUCKET}/x"), bucket.keys(bucket.address))
        .start()
        .await;
    (running, bucket, registry)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_arrives_in_every_kind_of_store_whatever_its_digests_are_by() {
    let (running, bucket, registry) = house().await;
    let client = reqwest::Client::new();
    for (seed, (name, by)) in (1..).zip([("whole", WHOLE), ("layers", LAYERS), ("manifest", MANIFEST)]) {
        let root = add(&running, name, by, &[noise(200_000, seed), noise(9 * MIB, seed + 10)]).await;
        assert!(root.starts_with(by.manifest), "{root}");
        synchronized(&running, name, &[]).await;
        is_intact(&running, name).await;

        // Verifies the copies independently of the service.
        assert_eq!(images::verify(&running.site.image("cn-shenzhen", name)), root);
        let out = running.site.directory.path().join(format!("out-{name}"));
        bucket.pull(&format!("x/{name}"), &out).await;
        assert_eq!(images::verify(&out), root);
        let layers = images::layers(&out);
        let manifests = [root.as_str(), name].map(|reference| format!("manifests/{reference}"));
        let blobs = layers.iter().map(|layer| format!("blobs/{layer}"));
        for (path, digest) in manifests.into_iter().zip([&root, &root]).chain(blobs.zip(&layers)) {
            let url = format!("http://{}/v2/apps/images/{path}", registry.address);
            let answer = client.get(url).send().await.expect("an answer");
            assert!(answer.status().is_success(), "{path}: {answer:?}");
            assert!(images::matches(digest, &answer.bytes().await.expect("bytes")), "{path}");
        }
    }
    running.stop().await;
}

/// A blob that another image of the store has is not copied again, even if it has a SHA-512 digest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_another_image_has_is_taken_from_there() {
    use std::os::unix::fs::MetadataExt as _;
    let (running, bucket, _registry) = house().await;
    add(&running, "one", WHOLE, &[noise(300_000, 1), noise(1_000, 2)]).await;
    add(&running, "two", LAYERS, &[noise(300_000, 1), noise(1_000, 3)]).await;
    let regions = ["cn-shanghai", "cn-shenzhen"];
    synchronized(&running, "one", &regions).await;
    for region in synchronized(&running, "two", &regions).await {
        assert!(region.bytes_skipped >= 300_000, "{region:?}");
    }
    let layer = images::layers(&running.site.image(HOME, "two"))[0].clone();
    let file = images::blob_path(&running.site.image("cn-shenzhen", "two"), &layer);
    assert_eq!(fs::metadata(file).expect("it is there").nlink(), 2);
    let out = running.site.directory.path().join("out");
    bucket.pull("x/two", &out).await;
    images::verify(&out);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_damaged_is_found_and_made_good() {
    let (bucket, registry) = (Bucket::start().await, Registry::start().await);
    let running = Site::new()
        .with("cn-beijing", registry.store("apps"), "")
        .with("cn-shanghai", format!("s3://{BUCKET}/x"), bucket.keys(bucket.address))
        .start()
        .await;
    add(&running, "a", LAYERS, &[noise(200_000, 1), noise(300_000, 2)]).await;
    synchronized(&running, "a", &[]).await;
    is_intact(&running, "a").await;

    let layer = images::layers(&running.site.image(HOME, "a"))[0].clone();
    let file = images::blob_path(&running.site.image("cn-shenzhen", "a"), &layer);
    let bytes = fs::read(&file).expect("it is there");
    // The distribution project's registry stores the bytes by SHA-256 and a link by SHA-512.
    fs::remove_file(registry.blob(&images::digest(&bytes))).expect("it was there");
    let mut damaged = bytes.clone();
    damaged[1_000] ^= 1;
    fs::write(&file, &damaged).expect("it is written");
    let object = format!("x/a/blobs/{}", layer.replacen(':', "/", 1));
    bucket.objects().put(&object.into(), damaged.into()).await.expect("it is put");

    let found = verified(&running, "a").await;
    for region in found.iter().filter(|region| region.region_id != HOME) {
        assert_eq!(region.intactness(), Intactness::Damaged, "{region:?}");
        assert!(region.problems.len() == 1 && region.problems[0].contains(&layer), "{region:?}");
    }
    synchronized(&running, "a", &["cn-beijing", "cn-shanghai", "cn-shenzhen"]).await;
    is_intact(&running, "a").await;
    running.stop().await;
}

/// Parts of a blob that were sent are not sent again after a restart of the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_outlives_its_worker() {
    let (bucket, keeping) = (Bucket::start().await, ResumableRegistry::start().await);
    // Three parts at a time are sent to the bucket.
    let to_bucket = Proxy::start(bucket.address, |_: &ReceivedRequest| Action::Throttle(8 << 20)).await;
    let to_registry = Proxy::start(keeping.address, |_: &ReceivedRequest| Action::Throttle(24 << 20)).await;
    let running = Site::new()
        .with("cn-beijing", to_registry.store("apps"), "")
        .with("cn-shanghai", format!("s3://{BUCKET}/x"), bucket.keys(to_bucket.address))
        .start()
        .await;
    add(&running, "a", WHOLE, &[noise(140 * MIB, 1)]).await;
    let request = running.synchronize("a", &["cn-beijing", "cn-shanghai"]).await.expect("it is accepted");
    // The registry then has one chunk of 64 MiB and a part of the second, the bucket some parts of 8 MiB.
    until("half of it", async || (to_registry.up() > 80 << 20 && to_bucket.up() > 45 << 20).then_some(())).await;
    let site = running.stop().await;
    for proxy in [&to_bucket, &to_registry] {
        proxy.rule(|_| Action::Pass);
    }
    let running = site.start().await;
    let done = running.finished(&request).await;
    for region in &done.regions {
        assert!(region.bytes_skipped >= 16 << 20, "{region:?}");
    }
    for proxy in [&to_bucket, &to_registry] {
        assert!(proxy.up() <= (140 + 40) << 20, "{} bytes were sent", proxy.up());
    }
    let out = running.site.directory.path().join("out");
    bucket.pull("x/a", &out).await;
    images::verify(&out);
    assert_eq!(keeping.unfinished(), 0);
    running.stop().await;
}

/// The written part of a blob in a directory is not written again, and no leftovers remain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_outlives_its_worker() {
    let source = ScriptedRegistry::start(Behavior::default()).await;
    source.image_by("sha512", &noise(80 * MIB, 1), Some("a"));
    let slow = |seen: &ReceivedRequest| if seen.reads_blob() { Action::Throttle(20 << 20) } else { Action::Pass };
    let proxy = Proxy::start(source.address, slow).await;
    let running = Site::new().with(HOME, proxy.store("apps"), "").start().await;
    let url = format!("{}/apps/a:a", proxy.address);
    let spec = crate::harness::site::container("a", &url);
    running.images().await.add_image(spec).await.expect("it is registered");
    let blobs = running.site.image("cn-beijing", "a").join("blobs/sha512");
    let begun = || {
        let files = fs::read_dir(&blobs).into_iter().flatten().flatten();
        let begun = files.filter(|file| file.file_name().to_string_lossy().ends_with(".begun"));
        begun.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).max()
    };
    let request = running.synchronize("a", &["cn-beijing"]).await.expect("it is accepted");
    until("some of it", async || begun().filter(|length| *length > 30 << 20)).await;
    let site = running.stop().await;
    proxy.rule(|_| Action::Pass);
    let running = site.start().await;
    let done = running.finished(&request).await;
    assert!(done.regions[0].bytes_skipped >= 30 << 20, "{done:?}");
    assert_eq!(begun(), None);
    images::verify(&running.site.image("cn-beijing", "a"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_read_and_its_damage_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let layout = directory.path().join("layout");
    let kinds: [(&str, Algorithms); 2] = [("whole", WHOLE), ("layers", LAYERS)];
    for (name, by) in kinds {
        let root = images::write_by(by, &layout, &[noise(50_000, 1)]);
        let layer = images::layers(&layout)[0].clone();
        for damages in [false, true] {
            let file = images::blob_path(&layout, &layer);
            let mut bytes = fs::read(&file).expect("it is there");
            bytes[100] ^= u8::from(damages);
            fs::write(&file, &bytes).expect("it is written");
            let path = directory.path().join("image.tar");
            let mut archive = tar::Builder::new(fs::File::create(&path).expect("a file"));
            archive.append_dir_all(".", &layout).expect("a tar");
            archive.finish().expect("a tar");

            let archive = Archive::open(&path, None).await.expect("it is read");
            let name = ImageName(name.to_owned());
            let found = archive.root(&name).await.expect("it is read").expect("an image");
            assert_eq!(found.digest.to_string(), root);
            let found = verify(Arc::new(archive), &name, &found, &[], MovedName::Damages).await.expect("it is read");
            let damaged: BTreeSet<bool> = found.damages.iter().map(|damage| damage.contains(&layer)).collect();
            assert_eq!(damaged, if damages { [true].into() } else { BTreeSet::new() }, "{:?}", found.damages);
        }
        fs::remove_dir_all(&layout).expect("it was there");
    }
}
