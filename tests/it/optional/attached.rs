//! Images that are attached to another one by a tag that contains its digest, as cosign's signatures are.

use appferry::{
    domain::ImageName,
    storage::{DirStore, ManifestGraph, Source as _},
};
use serde_json::{Value, json};

use super::{DIRECTORY, REGISTRY, arrived, between, digest, intact, register, warns};
use crate::harness::{
    images::{self, MANIFEST},
    registry::skopeo,
    scripted_registry::{Behavior, ScriptedRegistry, describe, tag},
    site::{HOME, Site, container},
};

/// Adds an image with some layers under a tag.
fn signatures(scripted_registry: &ScriptedRegistry, tag: &str, layers: &[&str]) -> Value {
    let layers: Vec<_> = layers.iter().map(|layer| scripted_registry.blob("x/signature", layer.as_bytes())).collect();
    let config = scripted_registry.blob("application/vnd.oci.image.config.v1+json", b"{}");
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    scripted_registry.manifest(MANIFEST, &manifest, Some(tag))
}

/// sigstore/cosign#2028, goharbor/harbor#17107.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_attached_by_tags_travels_from_store_to_store() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let site = Site::new().with(HOME, source.store(), "").with(REGISTRY, target.store(), "");
    let running = site.start().await;
    let image = source.image(b"layer", Some("a"));
    let tags = [".sig", ".att", ".sbom"].map(|kind| tag(&image, kind));
    let attached = tags.clone().map(|tag| signatures(&source, &tag, &[&tag]));
    // This attachment belongs to another attachment.
    let deep = tag(&attached[2], ".sig");
    let of_sbom = signatures(&source, &deep, &["of the bill of materials"]);
    register(&running, source.address, "a").await;
    for region in [REGISTRY, DIRECTORY] {
        let region = arrived(&running, "a", region).await;
        assert!(region.warnings.is_empty(), "{:?}", region.warnings);
    }
    let everything = tags.iter().chain([&deep]).zip(attached.iter().chain([&of_sbom]));
    let layout = running.site.image(DIRECTORY, "a");
    let shown = layout.join("signatures");
    for (tag, descriptor) in everything.clone() {
        assert_eq!(target.get(tag).as_ref(), Some(descriptor));
        let raw = skopeo(&["inspect", "--raw", &format!("oci:{}:{tag}", shown.display())]);
        assert_eq!(images::digest(raw.trim_end().as_bytes()), digest(descriptor), "{raw}");
    }
    intact(&running, "a", DIRECTORY).await;
    let _kept = running.stop().await;

    // A directory region serves as a source of the attachments.
    let onward = ScriptedRegistry::start(Behavior::default()).await;
    let site = Site::new();
    let home = site.image(HOME, "b");
    std::fs::create_dir_all(home.parent().expect("a region")).expect("a directory");
    let copied = std::process::Command::new("cp").arg("-r").arg(&layout).arg(&home).status();
    assert!(copied.expect("cp").success());
    let running = site.with(REGISTRY, onward.store(), "").start().await;
    running.images().await.add_image(container("b", "oci:b")).await.expect("it is registered");
    arrived(&running, "b", REGISTRY).await;
    for (tag, descriptor) in everything {
        assert_eq!(onward.get(tag).as_ref(), Some(descriptor));
    }
    running.stop().await;
}

/// Signatures that other clients added in a region are kept; one that the source has as well is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_that_others_have_made_in_a_region_stay() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    for (id, there, stays) in [("foreign", vec!["theirs"], true), ("older", vec!["first"], false)] {
        let image = source.image(id.as_bytes(), Some(id));
        let tag = tag(&image, ".sig");
        let ours = signatures(&source, &tag, &["first", "second"]);
        let theirs = signatures(&target, &tag, &there);
        register(&running, source.address, id).await;
        let region = arrived(&running, id, REGISTRY).await;
        assert_eq!(warns(&region.warnings, &tag, digest(&theirs)), stays, "{:?}", region.warnings);
        assert_eq!(region.warnings.is_empty(), !stays, "{:?}", region.warnings);
        assert_eq!(target.get(&tag), Some(if stays { theirs } else { ours }), "{id}");
    }
    running.stop().await;
}

/// A layout may list referrers without a name, as `oras cp -r` writes them.
#[tokio::test]
async fn what_lies_beside_an_image_without_a_name_belongs_to_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("b");
    let root = images::write(&home, &[b"layer".to_vec()]);
    let put = |kind: &str, content: &str| {
        std::fs::write(images::blob_path(&home, &images::digest(content.as_bytes())), content).expect("a blob");
        describe(kind, content.as_bytes())
    };
    let size = std::fs::read(images::blob_path(&home, &root)).expect("a manifest").len();
    let image = json!({ "mediaType": MANIFEST, "digest": root, "size": size });
    let note = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "x/note",
        "config": put("application/vnd.oci.empty.v1+json", "{}"), "layers": [put("text/plain", "a note")], "subject": image,
    });
    let note = put(MANIFEST, &note.to_string());
    let mut named = image.clone();
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
    let index = json!({ "schemaVersion": 2, "manifests": [named, note] });
    std::fs::write(home.join("index.json"), index.to_string()).expect("an index");
    let (store, name) = (DirStore::new(directory.path()), ImageName("b".into()));
    let root = store.root(&name).await.expect("it is read").expect("an image");
    let tree = ManifestGraph::read_with_attachments(&store, &name, &root, &[]).await.expect("it is whole");
    assert!(tree.warnings.is_empty(), "{:?}", tree.warnings);
    let attached: Vec<_> = tree.attachments.iter().filter_map(|one| Some(one.root()?.0.digest.to_string())).collect();
    assert_eq!(attached, [digest(&note)]);
    assert_eq!(tree.referrers.iter().map(|list| list.subject).collect::<Vec<_>>(), [root.digest]);
}
