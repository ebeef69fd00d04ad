//! Attachments of an image with SHA-512 digests.

use serde_json::{Value, json};

use super::synchronized;
use crate::harness::{
    images::{self, MANIFEST},
    scripted_registry::{Behavior, ScriptedRegistry, describe, tag},
    site::{HOME, Site, container},
};

const REGISTRY: &str = "cn-beijing";
const DIRECTORY: &str = "cn-shanghai";

fn digest(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().expect("a digest")
}

/// Signatures are found by the list of referrers and by tags with 64 digits of the digest, at the source and at each
/// destination.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_attached_travels_through_registries_and_layouts() {
    for lists_referrers in [true, false] {
        let habits = Behavior { lists_referrers, tags_digests: true, ..Behavior::default() };
        let source = ScriptedRegistry::start(habits).await;
        let image = source.image_by("sha512", b"layer", Some("a"));
        let note = source.refer(&image, "a note");
        let of_note = source.refer(&note, "a note of the note");
        if !lists_referrers {
            source.list(&image, std::slice::from_ref(&note));
            source.list(&note, std::slice::from_ref(&of_note));
        }
        // This signature is attached by a tag, as cosign does, here with a SHA-256 digest.
        let signature = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": source.blob("application/vnd.oci.image.config.v1+json", b"{}"),
            "layers": [source.blob("application/vnd.dev.cosign.simplesigning.v1+json", b"signed")],
        });
        let signed = tag(&image, ".sig");
        assert_eq!(signed.len(), "sha512-.sig".len() + 64);
        let signature = source.manifest(MANIFEST, &signature, Some(&signed));
        let arrives = |shelf: &ScriptedRegistry| {
            assert_eq!(shelf.get("a").as_ref(), Some(&image));
            for attached in [&note, &of_note] {
                assert_eq!(shelf.get(digest(attached)).as_ref(), Some(attached));
            }
            assert_eq!(shelf.get(&signed).as_ref(), Some(&signature));
            assert!(shelf.has_blob(&describe("x/y", b"signed")));
            let listed = [(&image, &note), (&note, &of_note)].map(|(subject, referrer)| {
                shelf.read(&tag(subject, "")).is_some_and(|list| list.contains(digest(referrer)))
            });
            assert_eq!(listed, [!lists_referrers; 2], "where the registry does not list them by itself");
        };

        let target = ScriptedRegistry::start(habits).await;
        let running = Site::new().with(HOME, source.store(), "").with(REGISTRY, target.store(), "").start().await;
        let url = format!("{}/apps/a:a", source.address);
        running.images().await.add_image(container("a", &url)).await.expect("it is registered");
        synchronized(&running, "a", &[REGISTRY, DIRECTORY]).await;
        arrives(&target);

        // Copies the image from the layout to another store.
        let layout = running.site.image(DIRECTORY, "a");
        assert!(images::blob_path(&layout, digest(&of_note)).exists());
        let onward = ScriptedRegistry::start(habits).await;
        let site = Site::new().with(REGISTRY, onward.store(), "");
        images::copy_tree(&layout, &site.image(HOME, "a"));
        running.stop().await;
        let running = site.start().await;
        running.images().await.add_image(container("a", "oci:a")).await.expect("it is registered");
        synchronized(&running, "a", &[REGISTRY]).await;
        arrives(&onward);
        running.stop().await;
    }
}
