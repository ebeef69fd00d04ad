//! Registries: each supports algorithms other than SHA-256 in its own way, or not at all.

use appferry::contract::v1::RemoveImageRequest;

use super::{LAYERS, MANIFEST, WHOLE, add, refused, root_of, synchronized};
use crate::harness::{
    images::{self, noise},
    quirks::{PULP, SPECIFIED, server::QuirkyRegistry},
    registry::Registry,
    scripted_registry::{Behavior, ScriptedRegistry},
    site::{HOME, Site, register},
};

const TARGET: &str = "cn-beijing";

/// A registry that accepts a tag together with a digest reports that digest for the tag; other registries report the
/// SHA-256 digest. Copies from both have the same content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_through_registries_that_name_tags_by_any_algorithm() {
    for tags_digests in [true, false] {
        let shelf = ScriptedRegistry::start(Behavior { tags_digests, ..Behavior::default() }).await;
        let running = Site::new().with(TARGET, shelf.store(), "").start().await;
        let root = add(&running, "a", WHOLE, &[noise(300_000, 1)]).await;
        synchronized(&running, "a", &[TARGET]).await;
        assert!(shelf.get(&root).is_some(), "by its digest");
        let shown = shelf.get("a").expect("a tag")["digest"].as_str().expect("a digest").to_owned();
        assert_eq!(shown == root, tags_digests, "{shown}");
        let home = running.site.image(HOME, "a");
        let manifest = std::fs::read(images::blob_path(&home, &root)).expect("it is there");
        assert!(images::matches(&shown, &manifest), "{shown}");
        running.stop().await;

        let onward = ScriptedRegistry::start(Behavior { tags_digests, ..Behavior::default() }).await;
        let site = Site::new().with(HOME, shelf.store(), "").with(TARGET, onward.store(), "");
        let running = site.start().await;
        register(&mut running.images().await, "a").await;
        assert_eq!(root_of(&running, "a").await, shown);
        synchronized(&running, "a", &[TARGET, "cn-shanghai"]).await;
        assert_eq!(images::verify(&running.site.image("cn-shanghai", "a")), shown);
        assert_eq!(onward.get(&shown), shelf.get(&shown));
        running.stop().await;
    }
}

/// A tag for which a registry reports the SHA-256 digest is recognized as the image that was published with a SHA-512
/// digest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_there_already_is_not_taken_for_another() {
    let registry = QuirkyRegistry::start(SPECIFIED).await;
    let running = Site::new().with(TARGET, registry.store("apps"), "").start().await;
    add(&running, "a", WHOLE, &[noise(300_000, 1)]).await;
    synchronized(&running, "a", &[TARGET]).await;
    let again = async || {
        let request = RemoveImageRequest { image_id: "a".into(), ..Default::default() };
        running.images().await.remove_image(request).await.expect("it is removed");
        registry.requests();
    };
    again().await;
    register(&mut running.images().await, "a").await;
    let done = synchronized(&running, "a", &[TARGET]).await;
    assert_eq!(done[0].bytes_copied, 0, "{done:?}");
    assert!(registry.requests().iter().all(|seen| seen.method != http::Method::PUT));

    // When another image follows under the same name, the published image does not count as foreign.
    again().await;
    add(&running, "a", MANIFEST, &[noise(300_000, 2)]).await;
    synchronized(&running, "a", &[TARGET]).await;
    again().await;
    running.add("a", &[noise(300_000, 3)]).await;
    synchronized(&running, "a", &[TARGET]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_is_mounted_from_another_repository() {
    let registry = QuirkyRegistry::start(SPECIFIED).await;
    let running = Site::new().with(TARGET, registry.store("apps"), "").start().await;
    add(&running, "a", LAYERS, &[noise(300_000, 1)]).await;
    synchronized(&running, "a", &[TARGET]).await;
    running.stop().await;
    let site = Site::new().with(HOME, registry.store("apps"), "").with(TARGET, registry.store("others"), "");
    let running = site.start().await;
    register(&mut running.images().await, "a").await;
    registry.requests();
    synchronized(&running, "a", &[TARGET]).await;
    let requests = registry.requests();
    let mounts = requests.iter().filter(|seen| seen.path.contains("mount=sha512%3A") && seen.status == 201);
    assert_eq!(mounts.count(), 1, "{requests:?}");
    let sent: u64 = requests.iter().map(|seen| seen.bytes).sum();
    assert!(sent < 10_000, "{requests:?}");
    running.stop().await;
}

/// When a registry rejects a blob with a SHA-512 digest because of the upload mode, another mode is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_has_another_reason_is_no_reason_to_give_up() {
    let registry = QuirkyRegistry::start(PULP).await;
    let running = Site::new().with(TARGET, registry.store("apps"), "").start().await;
    add(&running, "a", WHOLE, &[noise(300_000, 1)]).await;
    synchronized(&running, "a", &[TARGET]).await;
    assert_eq!(registry.unfinished(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_knows_sha256_alone_fails_by_itself_and_at_once() {
    let shelf = ScriptedRegistry::start(Behavior { only_sha256: true, ..Behavior::default() }).await;
    let running = Site::new().with(TARGET, shelf.store(), "").start().await;
    for (name, by) in [("whole", WHOLE), ("layers", LAYERS), ("manifest", MANIFEST)] {
        let root = add(&running, name, by, &[noise(66 << 20, 1), noise(300_000, 2)]).await;
        let layers = images::layers(&running.site.image(HOME, name));
        synchronized(&running, name, &["cn-shanghai"]).await;
        let message = refused(&running, name, TARGET).await;
        assert!(message.contains("supports sha512") && message.contains("400"), "{message}");
        let (_, digest) = message.split_once("does not take the digest sha512:").expect("it names the digest");
        let digest = format!("sha512:{}", &digest[..128]);
        match name {
            "layers" => assert!(layers.contains(&digest), "{message}"),
            "manifest" => assert_eq!(digest, root),
            // A digest of a layer or of the configuration, which are sent before the manifest.
            _ => assert!(digest != root && images::blob_path(&running.site.image(HOME, name), &digest).exists()),
        }
    }
    // Supported content is still sent in the same way.
    running.add("b", &[noise(66 << 20, 1), noise(300_000, 2)]).await;
    synchronized(&running, "b", &[TARGET]).await;
    running.stop().await;
}

/// The distribution project's registry accepts blobs with SHA-512 digests, but no manifests with such digests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_takes_blobs_alone_says_which_manifest_it_refuses() {
    let registry = Registry::start().await;
    let running = Site::new().with(TARGET, registry.store("apps"), "").start().await;
    add(&running, "layers", LAYERS, &[noise(66 << 20, 1), noise(300_000, 2)]).await;
    synchronized(&running, "layers", &[TARGET]).await;
    let root = add(&running, "whole", WHOLE, &[noise(300_000, 2)]).await;
    let message = refused(&running, "whole", TARGET).await;
    assert!(message.contains(&root) && message.contains("supports sha512"), "{message}");
    assert_eq!(registry.unfinished(), Vec::<String>::new());
    running.stop().await;
}
