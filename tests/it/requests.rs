//! The copy of a small image sends the minimum number of requests to the stores.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use appferry::contract::v1::SynchronizationState;
use futures_util::TryStreamExt as _;
use http::Method;
use object_store::ObjectStoreExt as _;

use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, noise},
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    scripted_registry::{Behavior, ScriptedRegistry, tag},
    site::{HOME, Running, Site, container, register},
};

const TARGET: &str = "cn-beijing";
/// How long a check of a tag is valid before the tag is moved.
const SHOWN_LATELY: Duration = Duration::from_secs(2);
/// The number of layers of an image, without its configuration.
const LAYERS: u64 = 3;

type Counts = BTreeMap<&'static str, usize>;

async fn synchronized(running: &Running, app: &str, region: &str) {
    let request = running.synchronize(app, &[region]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions[0].warnings.is_empty(), "{done:?}");
}

/// Returns the kind of a request, by its method and a part of its path.
fn kind(seen: &ReceivedRequest) -> &'static str {
    let kinds = [
        ("/tags/list", [Some("GET tags"), None, None, None]),
        ("/referrers/", [Some("GET referrers"), None, None, None]),
        ("/blobs/uploads/", [None, None, Some("POST upload"), Some("PUT upload")]),
        ("/blobs/", [Some("GET blob"), Some("HEAD blob"), None, None]),
        ("/manifests/", [Some("GET manifest"), Some("HEAD manifest"), None, Some("PUT manifest")]),
    ];
    let names = kinds.iter().find(|(part, _)| seen.path.contains(part)).map(|(_, names)| names);
    let place = [Method::GET, Method::HEAD, Method::POST, Method::PUT].iter().position(|method| *method == seen.method);
    names.zip(place).and_then(|(names, place)| names[place]).unwrap_or("another")
}

/// Counts the requests for a repository by kind.
fn counts(proxy: &Proxy, repository: &str) -> Counts {
    let mut counts = Counts::new();
    for seen in proxy.requests().iter().filter(|seen| seen.path.contains(&format!("/{repository}/"))) {
        *counts.entry(kind(seen)).or_default() += 1;
    }
    counts
}

fn since(before: &Counts, after: Counts) -> Counts {
    let new = after.into_iter().map(|(kind, count)| (kind, count - before.get(kind).copied().unwrap_or_default()));
    new.filter(|(_, count)| *count > 0).collect()
}

/// Counts repeated checks of the tag as one: on a busy machine, a check may expire before the tag is moved.
fn looked_once(began: Instant, mut counts: Counts) -> Counts {
    if began.elapsed() >= SHOWN_LATELY {
        counts.entry("HEAD manifest").and_modify(|looks| *looks = 1);
    }
    counts
}

/// Copies an image of three small layers and a configuration between repositories without earlier requests, and then a
/// second image between the same ones. An earlier image has shown the capabilities of the target's registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_image_between_registries_takes_so_many_requests() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let (from, to) =
        (Proxy::start(source.address, |_| Action::Pass).await, Proxy::start(target.address, |_| Action::Pass).await);
    let site = Site::new().with(HOME, from.store("apps"), "").with(TARGET, to.store("apps"), "");
    let images = [("first", "1"), ("fresh", "1"), ("fresh", "2")];
    for (seed, (repository, tag)) in (1..).zip(images) {
        let layout = site.directory.path().join(format!("{repository}-{tag}"));
        let layers: Vec<_> = (0..LAYERS).map(|layer| noise(20_000, seed * LAYERS + layer)).collect();
        images::write(&layout, &layers);
        source.push(&layout, &format!("apps/{repository}:{tag}"));
    }
    let running = site.start().await;
    for (repository, tag) in images {
        let url = format!("{}/apps/{repository}:{tag}", from.address);
        running
            .images()
            .await
            .add_image(container(&format!("{repository}-{tag}"), &url))
            .await
            .expect("it is registered");
    }
    synchronized(&running, "first-1", TARGET).await;
    let trials = to.requests().iter().filter(|seen| seen.path.contains("from=apps%2Ffirst")).count();
    assert_eq!(trials, 1, "what the registry can do is tried once");

    let read = [("GET blob", 4), ("GET manifest", 1), ("GET tags", 1), ("GET referrers", 1)];
    let written =
        [("GET manifest", 1), ("HEAD manifest", 1), ("POST upload", 4), ("PUT manifest", 1), ("PUT upload", 4)];
    let before = counts(&from, "fresh");
    let began = Instant::now();
    synchronized(&running, "fresh-1", TARGET).await;
    let first = counts(&from, "fresh");
    // This registry has no referrers API. The service discovers that once for each repository.
    assert_eq!(since(&before, first.clone()), read.into_iter().collect());
    let target_first = counts(&to, "fresh");
    assert_eq!(looked_once(began, target_first.clone()), written.into_iter().collect());
    let began = Instant::now();
    synchronized(&running, "fresh-2", TARGET).await;
    // Both images have the same configuration. It is checked and read at the target, not at the source.
    let read_again = [("GET blob", 3), ("GET manifest", 1), ("GET tags", 1)];
    assert_eq!(since(&first, counts(&from, "fresh")), read_again.into_iter().collect());
    let shared =
        [("GET manifest", 1), ("HEAD manifest", 1), ("POST upload", 4), ("PUT manifest", 1), ("PUT upload", 3)];
    let shared = shared.into_iter().chain([("HEAD blob", 1), ("GET blob", 1)]).collect();
    assert_eq!(looked_once(began, since(&target_first, counts(&to, "fresh"))), shared);
    assert_eq!(target.unfinished(), Vec::<String>::new());
    running.stop().await;
}

/// A signature that exists before the call is found, even if the tags of the repository were listed shortly before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_tags_is_not_older_than_the_call() {
    let lists = Behavior { lists_tags: true, ..Behavior::default() };
    let (source, target) = (ScriptedRegistry::start(lists).await, ScriptedRegistry::start(Behavior::default()).await);
    let from = Proxy::start(source.address, |_| Action::Pass).await;
    let running = Site::new().with(HOME, from.store("apps"), "").with(TARGET, target.store(), "").start().await;
    for id in ["a", "b", "c"] {
        let image = source.image(id.as_bytes(), Some(id));
        let url = format!("{}/apps/a:{id}", from.address);
        running.images().await.add_image(container(id, &url)).await.expect("it is registered");
        let signature = source.image(format!("the signature of {id}").as_bytes(), Some(&tag(&image, ".sig")));
        synchronized(&running, id, TARGET).await;
        assert_eq!(target.get(&tag(&image, ".sig")), Some(signature), "{id}");
    }
    let asked = counts(&from, "a");
    // The tags are listed once for each image, and for each signature only the existing tag is requested.
    assert_eq!((asked["GET tags"], asked["HEAD manifest"]), (3, 3 + 3), "{asked:?}");
    running.stop().await;
}

/// If the tags can't be listed, are too many, or lack a tag that is known to exist, each tag is requested.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_is_found_whatever_the_list_of_tags_says() {
    let many: Vec<String> = (0..1_000).map(|number| format!("\"v{number}\"")).collect();
    let page = format!("{{\"tags\":[{}]}}", many.join(","));
    let next = ("link", "</v2/apps/a/tags/list?n=1000&last=x>; rel=\"next\"".to_owned());
    let refused =
        |status: u16| Action::Answer(http::StatusCode::from_u16(status).expect("a status"), Vec::new(), "{}".into());
    let listed = |headers: Vec<_>, body: &str| Action::Answer(http::StatusCode::OK, headers, body.to_owned());
    for (what, act, pages) in [
        ("it has no list", refused(404), 1),
        ("it is forbidden", refused(403), 1),
        ("it is out of order", refused(500), 1),
        ("an empty list", listed(Vec::new(), r#"{"tags":null}"#), 2),
        ("a list without the image", listed(Vec::new(), r#"{"tags":["other"]}"#), 2),
        ("a list that is cut off", listed(Vec::new(), &page), 1),
        ("a list without an end", listed(vec![next.clone()], &page), 3),
        ("a list that is none", listed(Vec::new(), "<html>"), 1),
    ] {
        let (source, target) =
            (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
        let from =
            Proxy::start(source.address, move |seen| if kind(seen) == "GET tags" { act.clone() } else { Action::Pass });
        let from = from.await;
        let running = Site::new().with(HOME, from.store("apps"), "").with(TARGET, target.store(), "").start().await;
        for id in ["a", "b"] {
            let image = source.image(id.as_bytes(), Some(id));
            let signature = source.image(format!("the signature of {id}").as_bytes(), Some(&tag(&image, ".sig")));
            let url = format!("{}/apps/a:{id}", from.address);
            running.images().await.add_image(container(id, &url)).await.expect("it is registered");
            synchronized(&running, id, TARGET).await;
            assert_eq!(target.get(&tag(&image, ".sig")), Some(signature), "{what}");
        }
        // A repository whose tags can't be listed is not asked again for a while.
        assert_eq!(counts(&from, "a")["GET tags"], pages, "{what}");
        running.stop().await;
    }
}

/// The index of a layout is read once to copy an image with a signature, and so is the index of the attachments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_has_its_index_read_once() {
    let source = ScriptedRegistry::start(Behavior::default()).await;
    let bucket = Bucket::start().await;
    let store = format!("s3://{BUCKET}/x");
    let image = source.image(b"layer", Some("a"));
    source.image(b"the signature", Some(&tag(&image, ".sig")));
    source.list(&image, &[source.refer(&image, "a note")]);
    let running =
        Site::new().with(HOME, source.store(), "").with(TARGET, store, bucket.keys(bucket.address)).start().await;
    let url = format!("{}/apps/a:a", source.address);
    running.images().await.add_image(container("a", &url)).await.expect("it is registered");
    synchronized(&running, "a", TARGET).await;
    running.stop().await;

    let objects = bucket.objects();
    let written: Vec<_> = objects.list(Some(&"x/a".into())).try_collect().await.expect("a list");
    let index = objects.get(&"x/a/index.json".into()).await.expect("an index").bytes().await.expect("bytes");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("an index");
    let attached = index["manifests"][0]["annotations"]["io.appferry.referrers"].as_str().expect("an index of its own");
    let from = Proxy::start(bucket.address, |_| Action::Pass).await;
    let site = Site::new().with(HOME, format!("s3://{BUCKET}/x"), bucket.keys(from.address));
    let running = site.start().await;
    let app = register(&mut running.images().await, "a").await;
    let before = from.requests().len();
    synchronized(&running, &app, TARGET).await;
    let reads: Vec<String> = from.requests().split_off(before).into_iter().map(|seen| seen.path).collect();
    let of = |part: &str| reads.iter().filter(|path| path.contains(part)).count();
    assert_eq!((of("index.json"), of(attached.trim_start_matches("sha256:"))), (1, 1), "{reads:?}");
    // All other files except the marker are read once as well.
    assert_eq!(reads.len(), written.len() - 1, "{reads:?}");
    running.stop().await;
}
