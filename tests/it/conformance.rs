//! Every kind of store serves as source and as target: the same calls copy the same images, and other programs read the
//! copies.

use std::path::{Path, PathBuf};

use appferry::contract::v1::{ImageType, RegionState, SynchronizationState};
use object_store::ObjectStoreExt as _;

use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, copy_tree, files, noise},
    proxy::{Action, Proxy},
    registry::Registry,
    site::{HOME, Running, Site, TARGETS, container, registration},
    until,
};

const KINDS: [&str; 3] = TARGETS;

/// A service whose home region has one kind of store. It copies to a region of every kind: `cn-beijing` is a directory,
/// `cn-shanghai` a bucket, and `cn-shenzhen` a registry.
struct Fixture {
    running: Running,
    home: &'static str,
    home_registry: Registry,
    registry: Registry,
    bucket: Bucket,
}

impl Fixture {
    async fn build(home: &'static str) -> Self {
        let (home_registry, registry, bucket) =
            (Registry::start().await, Registry::start().await, Bucket::start().await);
        let keys = bucket.keys(bucket.address);
        let mut site = Site::new().with("cn-shanghai", format!("s3://{BUCKET}/images/shanghai"), keys.clone()).with(
            "cn-shenzhen",
            registry.store("apps"),
            "",
        );
        match home {
            "registry" => site = site.with(HOME, home_registry.store("home/apps"), ""),
            "bucket" => site = site.with(HOME, format!("s3://{BUCKET}/home"), keys),
            _ => {}
        }
        Self { running: site.start().await, home, home_registry, registry, bucket }
    }

    /// Writes a layout to the home region and registers it as an image.
    async fn put(&self, layout: &Path, id: &str) {
        let request = match self.home {
            "registry" => {
                self.home_registry.push(layout, &format!("home/apps/bio/{id}:2026.1"));
                container(id, &format!("docker://{}/home/apps/bio/{id}:2026.1", self.home_registry.address))
            }
            "bucket" => {
                upload(&self.bucket, layout, &format!("home/{id}")).await;
                container(id, &format!("oci:{id}"))
            }
            _ => {
                copy_tree(layout, &self.running.site.image(HOME, id));
                container(id, &format!("oci:{id}"))
            }
        };
        assert_eq!(request.image_type(), ImageType::Container);
        self.running.images().await.add_image(request).await.expect("it is registered");
    }

    /// Returns a region's copy of an image as a layout.
    async fn layout(&self, region: &str, id: &str, tag: &str) -> PathBuf {
        let layout = self.running.site.directory.path().join(format!("out-{region}-{id}"));
        match region {
            "cn-beijing" => copy_tree(&self.running.site.image(region, id), &layout),
            "cn-shanghai" => self.bucket.pull(&format!("images/shanghai/{id}"), &layout).await,
            _ => self.registry.pull(&format!("apps/{tag}"), &layout),
        }
        layout
    }

    async fn carry(&self, id: &str) {
        let request = self.running.synchronize(id, &KINDS).await.expect("it is accepted");
        let done = self.running.finished(&request).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
        assert!(done.regions.iter().all(|region| region.state() == RegionState::Available));
    }
}

/// Uploads a layout to a bucket.
async fn upload(bucket: &Bucket, layout: &Path, prefix: &str) {
    let objects = bucket.objects();
    for file in files(layout) {
        let below = file.strip_prefix(layout).expect("it is below").to_str().expect("text").to_owned();
        let content = std::fs::read(&file).expect("it is there");
        objects.put(&format!("{prefix}/{below}").into(), content.into()).await.expect("it is accepted");
    }
}

/// Copies an image whose blobs have different sizes, which are sent in one request, in parts, or in chunks.
async fn every_direction(home: &'static str) {
    let fixture = Fixture::build(home).await;
    let directory = tempfile::tempdir().expect("a directory");
    let plain = directory.path().join("plain");
    let root = images::write(&plain, &[noise(70 << 20, 1), noise(9 << 20, 2), noise(1_000, 3), Vec::new()]);
    fixture.put(&plain, "plain").await;
    let multi = directory.path().join("multi");
    let index = images::write_platforms(&multi);
    fixture.put(&multi, "multi").await;

    fixture.carry("plain").await;
    fixture.carry("multi").await;
    for region in KINDS {
        let tag = |id: &str| if home == "registry" { format!("bio/{id}:2026.1") } else { format!("images:{id}") };
        assert_eq!(images::verify(&fixture.layout(region, "plain", &tag("plain")).await), root, "{region}");
        assert_eq!(images::verify(&fixture.layout(region, "multi", &tag("multi")).await), index, "{region}");
    }
    until("the end of dropped uploads", async || {
        (fixture.registry.unfinished().is_empty() && fixture.bucket.unfinished() == 0).then_some(())
    })
    .await;
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_directory_to_every_kind() {
    every_direction("dir").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_registry_to_every_kind() {
    every_direction("registry").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_bucket_to_every_kind() {
    every_direction("bucket").await;
}

#[tokio::test]
async fn a_disk_keeps_its_id_as_its_tag() {
    let registry = Registry::start().await;
    let running = Site::new().with("cn-shenzhen", registry.store(""), "").start().await;
    let root = images::write(&running.site.image(HOME, "ci-vm-Ab1"), &[noise(100_000, 1)]);
    running.images().await.add_image(registration("ci-vm-Ab1")).await.expect("it is registered");
    let request = running.synchronize("ci-vm-Ab1", &["cn-shenzhen"]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);
    let layout = running.site.directory.path().join("out");
    registry.pull("images:ci-vm-Ab1", &layout);
    assert_eq!(images::verify(&layout), root);
    running.stop().await;
}

/// Between two regions in one bucket, S3 copies the blob: no byte passes through the worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_the_same_bucket_has_is_copied_by_the_service() {
    let bucket = Bucket::start().await;
    let proxy = Proxy::start(bucket.address, |_| Action::Pass).await;
    let running = Site::new()
        .with(HOME, format!("s3://{BUCKET}/home"), bucket.keys(proxy.address))
        .with("cn-beijing", format!("s3://{BUCKET}/other"), bucket.keys(proxy.address))
        .start()
        .await;
    let layout = running.site.directory.path().join("made");
    let root = images::write(&layout, &[noise(20 << 20, 1), noise(50_000, 2)]);
    upload(&bucket, &layout, "home/a").await;
    running.images().await.add_image(container("a", "oci:a")).await.expect("it is registered");
    let (up, down) = (proxy.up(), proxy.down());
    let request = running.synchronize("a", &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    let (up, down) = (proxy.up() - up, proxy.down() - down);
    assert!(up < 20_000 && down < 20_000, "{up} bytes were sent and {down} read");
    let out = running.site.directory.path().join("out");
    bucket.pull("other/a", &out).await;
    assert_eq!(images::verify(&out), root);
    running.stop().await;
}
