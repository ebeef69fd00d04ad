//! Images with unavailable parts: foreign layers, and missing entries of an index.

use std::{fs, time::Duration};

use appferry::contract::v1::{Intactness, RegionState, RemoveImageRequest};
use serde_json::json;
use tonic::Code;

use super::{DIRECTORY, REGISTRY, arrived, between, digest, ended, intact, register, verify, warns};
use crate::harness::{
    images::{self, INDEX, MANIFEST},
    proxy::{Action, Proxy},
    scripted_registry::{Behavior, ScriptedRegistry, describe},
    site::{HOME, Site, container},
};

fn index(scripted_registry: &ScriptedRegistry, entries: &[serde_json::Value], tag: &str) -> serde_json::Value {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    scripted_registry.manifest(INDEX, &index, Some(tag))
}

/// oras-project/oras-go#319, containers/skopeo#545: non-distributable layers are not in the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_others_give_out_is_not_carried() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    let mut foreign = describe("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"of somebody else");
    foreign["urls"] = json!(["http://example.com/layer"]);
    let local = source.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", b"our own");
    let config = source.blob("application/vnd.docker.container.image.v1+json", b"{}");
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [foreign, local] });
    source.manifest(kind, &manifest, Some("a"));
    register(&running, source.address, "a").await;
    for region in [REGISTRY, DIRECTORY] {
        let ended = arrived(&running, "a", region).await;
        assert!(warns(&ended.warnings, digest(&foreign), "others give it out"), "{:?}", ended.warnings);
        intact(&running, "a", region).await;
    }
    assert!(target.has_blob(&local) && !target.has_blob(&foreign));
    running.stop().await;
}

/// distribution/distribution#3536, openshift/oc-mirror#1526: an index of which only a part was mirrored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_carried_without_what_was_not_there() {
    let wants = Behavior { wants_entries: true, ..Behavior::default() };
    let (source, target) = (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(wants).await);
    let running = between(source.store(), &target).await;
    let (here, there) = (source.image(b"here", None), source.image(b"there", None));
    let gone = describe(MANIFEST, b"gone");
    let root = index(&source, &[here.clone(), gone.clone(), there.clone()], "a");
    register(&running, source.address, "a").await;
    let region = arrived(&running, "a", DIRECTORY).await;
    assert!(warns(&region.warnings, digest(&gone), "was not there"), "{:?}", region.warnings);
    let result = intact(&running, "a", DIRECTORY).await;
    assert!(warns(&result.warnings, digest(&gone), "was not there"), "{result:?}");
    let layout = running.site.image(DIRECTORY, "a");
    assert!(images::blob_path(&layout, digest(&root)).exists(), "the index is the same");

    // A registry that rejects such an index fails the copy at once, with a hint.
    let refused = ended(&running, "a", REGISTRY).await;
    let message = &refused.error.as_ref().expect("a reason").message;
    assert_eq!((refused.state(), refused.attempt), (RegionState::Failed, 1), "{refused:?}");
    assert!(message.contains("push them to the home region") && message.contains("MANIFEST_BLOB_UNKNOWN"), "{message}");

    // An entry that existed at registration is required.
    fs::remove_file(images::blob_path(&layout, digest(&there))).expect("it was there");
    let result = verify(&running, "a", DIRECTORY).await;
    assert_eq!(result.intactness(), Intactness::Damaged, "{result:?}");
    source.forget(&there);
    let refused = ended(&running, "a", "cn-shenzhen").await;
    assert_eq!(refused.state(), RegionState::Failed, "{refused:?}");

    // An entry with an unsupported media type is rejected at registration.
    let old = describe("application/vnd.docker.distribution.manifest.v1+prettyjws", b"old");
    index(&source, &[here.clone(), old], "old");
    let url = format!("{}/apps/a:old", source.address);
    let refused = running.images().await.add_image(container("old", &url)).await.expect_err("it can't be carried");
    assert!(refused.message().contains("schema 1") && refused.message().contains("convert"), "{refused:?}");

    // An index without any existing entry is rejected.
    index(&source, &[gone], "b");
    let refused = running.images().await.add_image(container("b", &format!("{}/apps/a:b", source.address))).await;
    assert_eq!(refused.expect_err("it is none").code(), Code::NotFound);
    running.stop().await;
}

/// An entry that appears after the registration of the image is copied to regions whose copy starts later. Other
/// regions get it when the image is added again: a published index does not prove that its absent entries were copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_comes_later_is_carried() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    let (here, late) = (source.image(b"here", None), source.image(b"late", None));
    let content: serde_json::Value =
        serde_json::from_str(&source.read(digest(&late)).expect("a manifest")).expect("JSON");
    source.forget(&late);
    index(&source, &[here.clone(), late.clone()], "a");
    register(&running, source.address, "a").await;
    for region in [REGISTRY, DIRECTORY] {
        let region = arrived(&running, "a", region).await;
        assert!(warns(&region.warnings, digest(&late), "add it and synchronize it again"), "{:?}", region.warnings);
    }
    assert_eq!(source.manifest(MANIFEST, &content, None), late);
    let region = arrived(&running, "a", "cn-shenzhen").await;
    assert!(region.warnings.is_empty(), "{:?}", region.warnings);
    let layout = running.site.image("cn-shenzhen", "a");
    assert!(images::blob_path(&layout, digest(&late)).exists());

    // In the other regions, VerifyImage finds the image intact and repeats the warning.
    for region in [REGISTRY, DIRECTORY] {
        let found = intact(&running, "a", region).await;
        assert!(warns(&found.warnings, digest(&late), "was not there"), "{found:?}");
    }
    let request = RemoveImageRequest { image_id: "a".into(), ..Default::default() };
    running.images().await.remove_image(request).await.expect("it is removed");
    register(&running, source.address, "a").await;
    for region in [REGISTRY, DIRECTORY] {
        let region = arrived(&running, "a", region).await;
        assert!(region.warnings.is_empty(), "{:?}", region.warnings);
        let found = intact(&running, "a", &region.region_id).await;
        assert!(found.warnings.is_empty(), "{found:?}");
    }
    assert_eq!(target.get(digest(&late)).as_ref(), Some(&late));
    assert!(target.has_blob(&content["layers"][0]));
    running.stop().await;
}

/// Docker build caches are indexes of blobs, older artifacts have manifests with their own media types, and a layer may
/// have the media type of a manifest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_something_is_follows_from_its_place() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    let kind = "application/vnd.oci.artifact.manifest.v1+json";
    let scan = source.blob("x/y", b"scan");
    let artifact = source.manifest(kind, &json!({ "mediaType": kind, "artifactType": "x/y", "blobs": [scan] }), None);
    let cache = source.blob("application/vnd.buildkit.cacheconfig.v0", b"{\"layers\":[{\"blob\":\"x\"}]}");
    // This layer has the media type of a manifest, but is not a manifest.
    let layer = source.blob(MANIFEST, b"no manifest");
    let config = source.blob("x/y", b"{}");
    let odd = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    let odd = source.manifest(MANIFEST, &odd, None);
    let inner = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [odd] });
    let inner = source.manifest(INDEX, &inner, None);
    index(&source, &[artifact.clone(), cache.clone(), inner.clone()], "a");
    register(&running, source.address, "a").await;
    for region in [REGISTRY, DIRECTORY] {
        let ended = arrived(&running, "a", region).await;
        assert!(ended.warnings.is_empty(), "{:?}", ended.warnings);
        intact(&running, "a", region).await;
    }
    assert!([&scan, &cache, &layer].iter().all(|blob| target.has_blob(blob)));
    assert!([&artifact, &inner, &odd].iter().all(|manifest| target.get(digest(manifest)).is_some()));
    running.stop().await;
}

/// The manifests of a large index are read concurrently. Sequential reads would take 45 seconds, and the deadline is 30
/// seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_index_is_registered_in_time() {
    let source = ScriptedRegistry::start(Behavior::default()).await;
    let entries: Vec<_> = (0..90).map(|number: u32| source.image(&number.to_le_bytes(), None)).collect();
    index(&source, &entries, "a");
    let proxy = Proxy::start(source.address, |_| Action::Delay(Duration::from_millis(500))).await;
    let running = Site::new().with(HOME, proxy.store("apps"), "").start().await;
    register(&running, proxy.address, "a").await;
    running.stop().await;
}
