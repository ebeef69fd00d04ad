//! Registry features beyond uploads: authentication, cross-repository mounts, and referrers.

use std::{path::Path, sync::Arc};

use appferry::{
    contract::v1::SynchronizationState,
    domain::{Descriptor, Digest, ImageName},
    storage::{
        Chunk, Credentials, Error, Journal, Location, ManifestGraph, RegistryClient, RegistryStore, Result, Stage,
        Store as _, Verdict, ssrf_guard::Guard,
    },
};
use http::{Method, StatusCode};
use serde_json::json;

use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, noise},
    proxy::{Action, Proxy, ReceivedRequest},
    registry::{Registry, asks_for_password, skopeo},
    resumable_registry::ResumableRegistry,
    site::{HOME, Running, Site, container},
};

async fn synchronized(running: &Running, app: &str, regions: &[&str]) {
    let request = running.synchronize(app, regions).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
}

async fn registered(running: &Running, id: &str, url: &str) {
    running.images().await.add_image(container(id, url)).await.expect("it is registered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_wants_a_password_gets_it_from_a_file_or_from_docker() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path.display().to_string()
    };
    let auth = asks_for_password(directory.path());
    let (one, two, three) =
        (Registry::start_with(&auth).await, Registry::start_with(&auth).await, Registry::start_with(&auth).await);
    let password = write("password", "the-stores-secret\n");
    let docker = json!({ "auths": { two.address.to_string(): { "auth": "Ym9iOnRoZS1zdG9yZXMtc2VjcmV0" } } });
    let docker = write("config.json", &docker.to_string());
    let running = Site::new()
        .with("cn-beijing", one.store("apps"), format!("username = \"bob\"\npassword_file = \"{password}\""))
        .with("cn-shanghai", two.store("apps"), format!("docker_config = \"{docker}\""))
        .with("cn-shenzhen", three.store("apps"), "")
        .start()
        .await;
    let app = running.add("a", &[noise(200_000, 1)]).await;
    synchronized(&running, &app, &["cn-beijing", "cn-shanghai"]).await;
    let request = running.synchronize(&app, &["cn-shenzhen"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    let region = &done.regions[0];
    let message = &region.error.as_ref().expect("a reason").message;
    assert!(message.contains("401") && message.contains("wants credentials"), "{message}");
    assert_eq!(region.attempt, 1, "it is not retried");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_another_repository_of_the_registry_has_is_mounted() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let proxy = Proxy::start(target.address, |_| Action::Pass).await;
    let site = Site::new().with(HOME, source.store("apps"), "").with("cn-beijing", proxy.store("apps"), "");
    let made = |name: &str, layers: &[Vec<u8>]| {
        let layout = site.directory.path().join(name);
        images::write(&layout, layers);
        source.push(&layout, &format!("apps/{name}:1"));
    };
    made("one", &[noise(3 << 20, 1), noise(10_000, 2)]);
    made("two", &[noise(3 << 20, 1), noise(10_000, 3)]);
    let running = site.start().await;
    for id in ["one", "two"] {
        registered(&running, id, &format!("{}/apps/{id}:1", source.address)).await;
    }
    synchronized(&running, "one", &["cn-beijing"]).await;
    let before = proxy.up();
    synchronized(&running, "two", &["cn-beijing"]).await;
    assert!(proxy.up() - before < 100_000, "{} bytes were sent", proxy.up() - before);
    let mounts = proxy.requests().into_iter().filter(|request| request.path.contains("from=apps%2Fone")).count();
    assert!(mounts >= 1);
    let layout = running.site.directory.path().join("out");
    target.pull("apps/two:1", &layout);
    images::verify(&layout);
    assert_eq!(target.unfinished(), Vec::<String>::new());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_in_dockers_own_form_is_carried_byte_for_byte() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = Site::new().with(HOME, source.store("apps"), "").with("cn-beijing", target.store("other/apps"), "");
    let layout = site.directory.path().join("made");
    images::write(&layout, &[noise(200_000, 1)]);
    let (from, to) = (format!("oci:{}", layout.display()), source.docker("apps/a:1"));
    skopeo(&["copy", "--format", "v2s2", "--dest-tls-verify=false", &from, &to]);
    let running = site.start().await;
    registered(&running, "a", &format!("{}/apps/a:1", source.address)).await;
    synchronized(&running, "a", &["cn-beijing"]).await;
    let raw = |name: &str| skopeo(&["inspect", "--raw", "--tls-verify=false", name]);
    let manifest = raw(&target.docker("other/apps/a:1"));
    assert!(manifest.contains("vnd.docker.distribution.manifest.v2+json"), "{manifest}");
    assert_eq!(manifest, raw(&to));
    running.stop().await;
}

/// Adds a signature without the service: a manifest whose subject is the image, and the tag that lists it. Returns the
/// digest of the signature and the list.
async fn sign(registry: &Registry, repository: &str, subject: &str, size: usize) -> (String, String) {
    let client = reqwest::Client::new();
    let base = format!("http://{}/v2/{repository}", registry.address);
    for content in ["{}", "a signature"] {
        let begun = client.post(format!("{base}/blobs/uploads/")).send().await.expect("an answer");
        let location = begun.headers()["location"].to_str().expect("text").to_owned();
        let put = client.put(format!("{location}&digest={}", images::digest(content.as_bytes()))).body(content);
        assert_eq!(put.send().await.expect("an answer").status(), StatusCode::CREATED);
    }
    let signature = json!({
        "schemaVersion": 2,
        "mediaType": images::MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": images::digest(b"{}"), "size": 2 },
        "layers": [{ "mediaType": "text/plain", "digest": images::digest(b"a signature"), "size": 11 }],
        "subject": { "mediaType": images::MANIFEST, "digest": subject, "size": size },
    })
    .to_string();
    let digest = images::digest(signature.as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "mediaType": images::INDEX,
        "manifests": [{ "mediaType": images::MANIFEST, "digest": digest, "size": signature.len(),
                        "artifactType": "application/vnd.example.signature" }],
    })
    .to_string();
    let tag = subject.replace(':', "-");
    for (reference, kind, content) in [(&digest, images::MANIFEST, &signature), (&tag, images::INDEX, &index)] {
        let put =
            client.put(format!("{base}/manifests/{reference}")).header("content-type", kind).body(content.clone());
        assert_eq!(put.send().await.expect("an answer").status(), StatusCode::CREATED);
    }
    (digest, index)
}

fn manifest_size(layout: &Path, digest: &str) -> usize {
    std::fs::read(images::blob_path(layout, digest)).expect("it is there").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_travel_with_the_image_through_every_kind_of_store() {
    let (source, target, bucket) = (Registry::start().await, Registry::start().await, Bucket::start().await);
    let resumable_registry = ResumableRegistry::start().await;
    let mut site = Site::new().with(HOME, source.store("apps"), "").with("cn-beijing", target.store("apps"), "").with(
        "cn-shanghai",
        format!("s3://{BUCKET}/x"),
        bucket.keys(bucket.address),
    );
    site.more =
        format!("[[region]]\nid = \"keeping\"\nstore = \"registry+http://{}/apps\"\n", resumable_registry.address);
    let layout = site.directory.path().join("made");
    let root = images::write(&layout, &[noise(200_000, 1)]);
    source.push(&layout, "apps/a:1");
    let (signature, index) = sign(&source, "apps/a", &root, manifest_size(&layout, &root)).await;
    let running = site.start().await;
    registered(&running, "a", &format!("{}/apps/a:1", source.address)).await;
    synchronized(&running, "a", &[]).await;

    let tag = root.replace(':', "-");
    let list = skopeo(&["inspect", "--raw", "--tls-verify=false", &target.docker(&format!("apps/a:{tag}"))]);
    assert!(list.contains(&signature) && list.contains("application/vnd.example.signature"), "{list}");
    let signed = skopeo(&["inspect", "--raw", "--tls-verify=false", &target.docker(&format!("apps/a@{signature}"))]);
    assert!(signed.contains(&root), "{signed}");
    // A registry with the referrers API needs no tag.
    assert!(resumable_registry.has(&signature) && resumable_registry.has("1") && !resumable_registry.has(&tag));

    // In layouts, the image is the only entry. That entry names the index that lists the referrers.
    let out = running.site.directory.path().join("out");
    bucket.pull("x/a", &out).await;
    for layout in [&running.site.image("cn-shenzhen", "a"), &out] {
        let text = std::fs::read_to_string(layout.join("index.json")).expect("an index");
        let (_, lists) = text.split_once(r#""io.appferry.referrers":""#).expect("the index of the lists");
        let lists = std::fs::read_to_string(images::blob_path(layout, lists.split('"').next().expect("a digest")));
        assert!(lists.is_ok_and(|lists| lists.contains(&tag)) && text.contains("latest"), "{text}");
        let listed = std::fs::read(images::blob_path(layout, &images::digest(index.as_bytes())));
        assert!(listed.is_ok_and(|listed| listed == index.as_bytes()), "{text}");
        assert!(
            images::blob_path(layout, &signature).exists()
                && images::blob_path(layout, &images::digest(b"a signature")).exists()
        );
        for name in ["", ":latest"] {
            let inspected = skopeo(&["inspect", "--raw", &format!("oci:{}{name}", layout.display())]);
            assert!(inspected.contains("layers"));
        }
    }
    running.stop().await;
}

/// The source has the referrers API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn referrers_are_found_by_the_api_where_there_is_one() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = Site::new();
    let layout = site.directory.path().join("made");
    let root = images::write(&layout, &[noise(200_000, 1)]);
    source.push(&layout, "apps/a:1");
    let (signature, index) = sign(&source, "apps/a", &root, manifest_size(&layout, &root)).await;
    let (expected, empty) = (format!("/referrers/{root}"), r#"{"schemaVersion":2,"manifests":[]}"#);
    let proxy = Proxy::start(source.address, move |request: &ReceivedRequest| {
        if request.path.contains("/manifests/sha256-") {
            return Action::Answer(StatusCode::NOT_FOUND, vec![], String::new());
        }
        if !request.path.contains("/referrers/") {
            return Action::Pass;
        }
        let list = if request.path.ends_with(&expected) { index.clone() } else { empty.to_owned() };
        Action::Answer(StatusCode::OK, vec![("content-type", images::INDEX.to_owned())], list)
    })
    .await;
    let site = site.with(HOME, proxy.store("apps"), "").with("cn-beijing", target.store("apps"), "");
    let running = site.start().await;
    registered(&running, "a", &format!("{}/apps/a:1", proxy.address)).await;
    synchronized(&running, "a", &["cn-beijing"]).await;
    let tag = root.replace(':', "-");
    let list = skopeo(&["inspect", "--raw", "--tls-verify=false", &target.docker(&format!("apps/a:{tag}"))]);
    assert!(list.contains(&signature), "{list}");
    running.stop().await;
}

/// A journal whose claim has expired.
#[derive(Debug)]
struct Overtaken;

#[tonic::async_trait]
impl Journal for Overtaken {
    async fn hold(&self) -> Result<()> {
        Err(Error::Overtaken)
    }

    async fn upload(&self, _: Digest) -> Result<Option<String>> {
        Ok(None)
    }

    async fn note(&self, _: Digest, _: &str) -> Result<()> {
        Ok(())
    }

    async fn forget(&self, _: Digest) -> Result<()> {
        Ok(())
    }
}

fn tree() -> ManifestGraph {
    let content = r#"{"schemaVersion":2}"#;
    let digest = images::digest(content.as_bytes()).parse().expect("a digest");
    let root = Descriptor { media_type: images::MANIFEST.into(), digest, size: content.len() as u64 };
    ManifestGraph { manifests: vec![(root, content.into())], ..ManifestGraph::default() }
}

fn store(proxy: &Proxy) -> RegistryStore {
    let Ok(Location::Registry(location)) = proxy.store("apps").parse() else { panic!("a registry") };
    let client = RegistryClient::new(location, Credentials::Anonymous, Vec::new(), None, Guard::new(true));
    RegistryStore::new(client.expect("a client"))
}

/// Writes a blob from a stream without retries.
async fn write_once(store: &RegistryStore, stage: &Stage, content: &[u8]) -> Result<()> {
    let digest = images::digest(content).parse().expect("a digest");
    let blob = Descriptor { media_type: "x/y".into(), digest, size: content.len() as u64 };
    let (sender, chunks) = tokio::sync::mpsc::channel(8);
    let pieces = content.chunks(1 << 20).map(|piece| Chunk::Data(piece.to_vec().into())).chain([Chunk::End]);
    for piece in pieces {
        sender.send(piece).await.expect("there is room");
    }
    store.write_blob(stage, &blob, 0, chunks).await
}

/// An upload follows a limited number of redirects, and none to a host that is not the registry's.
#[tokio::test]
async fn bytes_that_are_redirected_go_to_a_few_places_that_are_allowed() {
    let registry = Registry::start().await;
    let content = noise(3 << 20, 1);
    let stage = || Stage::new(ImageName("a:1".into()), 1, Arc::<appferry::storage::Memory>::default());
    let redirect = |status: StatusCode, to: String| Action::Answer(status, vec![("location", to)], String::new());
    let proxy = Proxy::start(registry.address, move |seen: &ReceivedRequest| {
        let is_redirected = seen.writes_blob();
        if is_redirected { redirect(StatusCode::TEMPORARY_REDIRECT, seen.path.clone()) } else { Action::Pass }
    })
    .await;
    let (around, store) = (stage(), store(&proxy));
    for count in 1..=4 {
        let led_on = write_once(&store, &around, &content).await;
        assert!(matches!(led_on, Err(Error::Redirected { .. })), "{count}: {led_on:?}");
    }
    let refused = write_once(&store, &around, &content).await.expect_err("it leads around");
    assert!(refused.to_string().contains("redirected too often"), "{refused}");
    assert_eq!(refused.verdict(), Verdict::Fail);
    // All attempts used the same upload.
    let begun = proxy.requests().iter().filter(|seen| seen.method == Method::POST).count();
    assert_eq!(begun, 1);
    proxy.rule(move |seen: &ReceivedRequest| {
        let is_redirected = seen.writes_blob();
        if is_redirected {
            redirect(StatusCode::PERMANENT_REDIRECT, "http://127.0.0.1:1/x".into())
        } else {
            Action::Pass
        }
    });
    let refused = write_once(&store, &stage(), &content).await;
    assert!(matches!(refused, Err(Error::Elsewhere { .. })), "{refused:?}");
}

#[tokio::test]
async fn who_was_overtaken_moves_no_tag() {
    let resumable_registry = ResumableRegistry::start().await;
    let proxy = Proxy::start(resumable_registry.address, |_| Action::Pass).await;
    let stage = |journal: Arc<dyn Journal>| Stage::new(ImageName("a:1".into()), 1, journal);
    let refused = store(&proxy).publish(&stage(Arc::new(Overtaken)), &tree()).await;
    assert!(matches!(refused, Err(Error::Overtaken)), "{refused:?}");
    assert!(!resumable_registry.has("1"));

    // The service detects that another client moves the tag right after it was written.
    proxy.rule(|request: &ReceivedRequest| {
        let looks = request.method != Method::PUT && request.path.ends_with("/manifests/1");
        if looks { Action::Answer(StatusCode::NOT_FOUND, vec![], String::new()) } else { Action::Pass }
    });
    let contended = store(&proxy).publish(&stage(Arc::<appferry::storage::Memory>::default()), &tree()).await;
    assert!(matches!(contended, Err(Error::Contended(_))), "{contended:?}");

    // The response to `HEAD` may be stale.
    proxy.rule(|request: &ReceivedRequest| {
        let looks = request.method == Method::HEAD && request.path.ends_with("/manifests/1");
        if looks { Action::Answer(StatusCode::NOT_FOUND, vec![], String::new()) } else { Action::Pass }
    });
    store(&proxy).publish(&stage(Arc::<appferry::storage::Memory>::default()), &tree()).await.expect("it is there");
}
