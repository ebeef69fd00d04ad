//! Referrers lists that are rejected, have dangling entries, or are longer than usual.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use appferry::contract::v1::{GetImageRequest, RemoveImageRequest};
use http::StatusCode;
use serde_json::json;

use super::{DIRECTORY, REGISTRY, arrived, between, digest, intact, register, warns};
use crate::harness::{
    images::{self, INDEX, MANIFEST},
    proxy::{Action, Proxy, ReceivedRequest},
    registry::skopeo,
    scripted_registry::{Behavior, ScriptedRegistry, describe, tag},
    site::{HOME, Site, container},
};

const LISTS: Behavior = Behavior {
    lists_referrers: true,
    lists_tags: true,
    wants_subjects: false,
    wants_entries: false,
    keeps_tags: false,
    only_sha256: false,
    tags_digests: false,
};
/// The artifact manifest of OCI 1.1 release candidates.
const ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// goharbor/harbor#18305, regclient/regclient#389 and google/go-containerregistry#1962: different responses of
/// registries without the referrers API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_arrives_whatever_is_said_of_its_referrers() {
    let source = ScriptedRegistry::start(Behavior::default()).await;
    // Each status has its own service, which has not cached the result for the registry.
    for status in [401, 403, 404, 405, 406, 410, 500, 501] {
        let id = format!("a{status}");
        let image = source.image(id.as_bytes(), Some(&id));
        let target = ScriptedRegistry::start(LISTS).await;
        let proxy = Proxy::start(source.address, move |request: &ReceivedRequest| {
            if request.path.contains("/referrers/") {
                Action::Answer(StatusCode::from_u16(status).expect("a status"), Vec::new(), "{}".into())
            } else {
                Action::Pass
            }
        })
        .await;
        let running = between(proxy.store("apps"), &target).await;
        register(&running, proxy.address, &id).await;
        let region = arrived(&running, &id, REGISTRY).await;
        let refused = matches!(status, 401 | 403 | 500);
        let reason = status.to_string();
        assert_eq!(warns(&region.warnings, digest(&image), &reason), refused, "{status}: {:?}", region.warnings);
        assert_eq!(region.warnings.is_empty(), !refused, "{status}: {:?}", region.warnings);
        let home = intact(&running, &id, HOME).await;
        assert_eq!(home.warnings.is_empty(), !refused, "{status}: {home:?}");
        // The warning is kept with the image.
        let request = GetImageRequest { image_id: id, ..Default::default() };
        let shown = running.images().await.get_image(request).await.expect("it is known").into_inner();
        let info = shown.image.expect("an image").additional_regions_info;
        let info = info.into_iter().find(|info| info.region_id == REGISTRY).expect("the region");
        assert_eq!(info.warnings, region.warnings);
        running.stop().await;
    }
}

/// A registry whose referrers API fails once is queried again for the next image. A list is recognized whatever its
/// media type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_odd_answer_takes_no_signatures_away() {
    let (source, target) = (ScriptedRegistry::start(LISTS).await, ScriptedRegistry::start(LISTS).await);
    let images = ["first", "odd", "named", "last"].map(|id| (id, source.image(id.as_bytes(), Some(id))));
    let signatures = images.clone().map(|(id, image)| source.refer(&image, id));
    let (odd, named) = (digest(&images[1].1).to_owned(), digest(&images[2].1).to_owned());
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [signatures[2]] }).to_string();
    let proxy = Proxy::start(source.address, move |request: &ReceivedRequest| {
        if request.path.ends_with(&format!("/referrers/{odd}")) {
            Action::Answer(StatusCode::NOT_FOUND, Vec::new(), "{}".into())
        } else if request.path.ends_with(&format!("/referrers/{named}")) {
            Action::Answer(StatusCode::OK, vec![("content-type", "application/json".into())], list.clone())
        } else {
            Action::Pass
        }
    })
    .await;
    let running = between(proxy.store("apps"), &target).await;
    for ((id, image), signature) in images.iter().zip(&signatures) {
        register(&running, proxy.address, id).await;
        let region = arrived(&running, id, REGISTRY).await;
        let is_odd = *id == "odd";
        assert_eq!(warns(&region.warnings, digest(image), "listed referrers before"), is_odd, "{id}: {region:?}");
        assert_eq!(region.warnings.is_empty(), !is_odd, "{id}: {region:?}");
        assert_eq!(target.get(digest(signature)).is_some(), !is_odd, "{id}: {region:?}");
    }
    running.stop().await;
}

/// chainguard-dev/terraform-provider-cosign#581, opencontainers/distribution-spec#514: lists contain dangling entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_referrer_that_is_gone_is_left_out() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    let image = source.image(b"layer", Some("a"));
    let (good, ghost) = (source.refer(&image, "good"), source.refer(&image, "ghost"));
    // The manifest of this referrer exists, but its content does not.
    let hollow = source.refer(&image, "hollow");
    source.list(&image, &[ghost.clone(), good.clone(), hollow.clone()]);
    register(&running, source.address, "a").await;
    source.forget(&ghost);
    source.forget(&describe("text/plain", b"hollow"));
    for region in [REGISTRY, DIRECTORY] {
        let region = arrived(&running, "a", region).await;
        assert_eq!(region.warnings.len(), 2, "{:?}", region.warnings);
        assert!(warns(&region.warnings, digest(&ghost), "is not there"), "{:?}", region.warnings);
        assert!(warns(&region.warnings, digest(&hollow), "is not there"), "{:?}", region.warnings);
    }
    let listed = target.read(&tag(&image, "")).expect("a list");
    assert!(listed.contains(digest(&good)) && !listed.contains(digest(&ghost)), "{listed}");
    assert!(!listed.contains(digest(&hollow)) && target.get(digest(&good)).is_some(), "{listed}");

    // The list in the target region has the same dangling entries.
    target.list(&image, &[ghost.clone(), good.clone(), describe(ARTIFACT, b"{}  ")]);
    let result = intact(&running, "a", REGISTRY).await;
    assert!(warns(&result.warnings, digest(&ghost), "is not there") && result.warnings.len() == 2, "{result:?}");
    running.stop().await;
}

/// An invalid entry of a list is left out without affecting others: at the source, in a region and in a layout's index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_nonsense_takes_no_other_away() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    let image = source.image(b"layer", Some("a"));
    let good = source.refer(&image, "good");
    let odd = |seed: &str, key: &str, value: serde_json::Value| {
        let mut entry = describe(MANIFEST, seed.as_bytes());
        entry[key] = value;
        entry
    };
    let negative = odd("negative", "size", json!(-1));
    let nonsense = [
        negative.clone(),
        odd("absurd", "size", json!(u64::MAX)),
        odd("large", "size", json!(1_u64 << 50)),
        odd("text", "size", json!("7")),
        odd("digest", "digest", json!("md5:00")),
        json!(7),
    ];
    let listed: Vec<_> = nonsense.iter().chain([&good]).cloned().collect();
    source.list(&image, &listed);
    target.list(&image, std::slice::from_ref(&negative));
    register(&running, source.address, "a").await;
    let region = arrived(&running, "a", REGISTRY).await;
    assert_eq!(region.warnings.len(), nonsense.len(), "{:?}", region.warnings);
    let there = target.read(&tag(&image, "")).expect("a list");
    assert!(there.contains(&negative.to_string()) && there.contains(digest(&good)), "{there}");
    assert!(!there.contains("md5:00") && target.get(digest(&good)).is_some(), "{there}");

    running.stop().await;
    let site = Site::new();
    images::write(&site.image(HOME, "b"), &[b"layer".to_vec()]);
    let path = site.image(HOME, "b").join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("an index")).expect("JSON");
    index["manifests"].as_array_mut().expect("entries").insert(0, negative);
    std::fs::write(&path, index.to_string()).expect("it is written");
    let running = site.start().await;
    running.images().await.add_image(container("b", "oci:b")).await.expect("it is registered");
    let region = arrived(&running, "b", DIRECTORY).await;
    assert_eq!(region.warnings.len(), 1, "{:?}", region.warnings);
    assert!(warns(&region.warnings, "is no descriptor", "-1"), "{:?}", region.warnings);
    running.stop().await;
}

/// oras-project/oras#1892: a list may be visible before the manifests that it lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_referrer_that_is_not_found_at_once_is_asked_for_again() {
    let (source, target) = (ScriptedRegistry::start(LISTS).await, ScriptedRegistry::start(LISTS).await);
    let image = source.image(b"layer", Some("a"));
    let late = source.refer(&image, "late");
    let of_late = source.refer(&late, "of what is late");
    let ghost = source.refer(&image, "ghost");
    let asked = Arc::new(Mutex::new(BTreeMap::<String, u32>::new()));
    let (counts, (slow, gone)) = (Arc::clone(&asked), (digest(&late).to_owned(), digest(&ghost).to_owned()));
    let proxy = Proxy::start(source.address, move |seen: &ReceivedRequest| {
        let Some((_, manifest)) = seen.path.split_once("/manifests/") else { return Action::Pass };
        let mut counts = counts.lock().expect("no panic");
        let count = counts.entry(manifest.to_owned()).or_default();
        *count += 1;
        // One manifest is missing twice and one forever, so that the test detects too few and endless retries.
        let is_missed = manifest == gone || (manifest == slow && *count <= 2);
        if is_missed { Action::Answer(StatusCode::NOT_FOUND, Vec::new(), "{}".into()) } else { Action::Pass }
    })
    .await;
    let running = between(proxy.store("apps"), &target).await;
    register(&running, proxy.address, "a").await;
    let region = arrived(&running, "a", REGISTRY).await;
    assert_eq!(region.warnings.len(), 1, "{:?}", region.warnings);
    assert!(warns(&region.warnings, digest(&ghost), "is not there"), "{:?}", region.warnings);
    assert!(target.get(digest(&late)).is_some() && target.get(digest(&of_late)).is_some());
    assert_eq!(asked.lock().expect("no panic").get(digest(&ghost)), Some(&3), "so often, and no oftener");
    running.stop().await;
}

/// Distribution specification 1.1, "Listing Referrers": clients write the lists kept by a tag, and some omit fields
/// that a registry would add.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_says_what_the_manifests_say() {
    let (source, target) =
        (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    let image = source.image(b"layer", Some("a"));
    let typed = source.refer(&image, "with a type of its own");
    let (config, layer) = (source.blob("application/vnd.example.config", b"{}"), source.blob("text/plain", b"plain"));
    let untyped = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer], "subject": image,
        "annotations": { "org.example.made": "today" },
    });
    let untyped = source.manifest(MANIFEST, &untyped, None);
    let mut wrong = untyped.clone();
    wrong["artifactType"] = json!("application/vnd.example.wrong");
    source.list(&image, &[typed.clone(), wrong]);
    register(&running, source.address, "a").await;
    for region in [REGISTRY, DIRECTORY] {
        let region = arrived(&running, "a", region).await;
        assert!(region.warnings.is_empty(), "{:?}", region.warnings);
    }
    let expected = |descriptor: &serde_json::Value, kind: &str| {
        let mut entry = descriptor.clone();
        entry["artifactType"] = json!(kind);
        entry
    };
    let typed = expected(&typed, "application/vnd.example.note");
    let mut untyped = expected(&untyped, "application/vnd.example.config");
    untyped["annotations"] = json!({ "org.example.made": "today" });
    let listed = target.read(&tag(&image, "")).expect("a list");
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["manifests"], json!([typed, untyped]));
    let layout = running.site.image(DIRECTORY, "a").join("signatures");
    let raw = skopeo(&["inspect", "--raw", &format!("oci:{}:{}", layout.display(), tag(&image, ""))]);
    let listed: serde_json::Value = serde_json::from_str(&raw).expect("JSON");
    assert_eq!(listed["manifests"], json!([typed, untyped]));
    running.stop().await;
}

/// oras-project/oras#727, google/go-containerregistry#1697: scan results of the older type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn referrers_of_any_type_travel() {
    let (source, target) = (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(LISTS).await);
    let running = between(source.store(), &target).await;
    let image = source.image(b"layer", Some("a"));
    let scan = source.blob("application/json", b"scan");
    let artifact = json!({ "mediaType": ARTIFACT, "artifactType": "x/scan", "blobs": [scan], "subject": image });
    let artifact = source.manifest(ARTIFACT, &artifact, None);
    // This referrer has an unknown media type, but the structure of a manifest.
    let kind = "application/vnd.example.manifest.v9+json";
    let other = json!({ "mediaType": kind, "layers": [source.blob("x/y", b"other")], "subject": image });
    let other = source.manifest(kind, &other, None);
    source.list(&image, &[artifact.clone(), other.clone()]);
    register(&running, source.address, "a").await;
    let region = arrived(&running, "a", REGISTRY).await;
    assert!(region.warnings.is_empty(), "{:?}", region.warnings);
    assert_eq!((target.get(digest(&artifact)), target.get(digest(&other))), (Some(artifact), Some(other)));
    assert!(target.has_blob(&scan) && target.has_blob(&describe("x/y", b"other")));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_many_pages_is_read_to_its_end() {
    const EACH: usize = 8;
    let (source, target) = (ScriptedRegistry::start(Behavior::default()).await, ScriptedRegistry::start(LISTS).await);
    let image = source.image(b"layer", Some("a"));
    let all: Vec<_> = (0..30 * EACH).map(|number| source.refer(&image, &number.to_string())).collect();
    let pages: Vec<String> = all
        .chunks(EACH)
        .map(|page| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": page }).to_string())
        .collect();
    let root = digest(&image).to_owned();
    let proxy = Proxy::start(source.address, move |request: &ReceivedRequest| {
        let Some((_, subject)) = request.path.split_once("/referrers/") else { return Action::Pass };
        let (subject, page) = subject.split_once("?page=").unwrap_or((subject, "0"));
        let kind = ("content-type", INDEX.to_owned());
        if subject != root {
            return Action::Answer(StatusCode::OK, vec![kind], r#"{"schemaVersion":2,"manifests":[]}"#.to_owned());
        }
        let page: usize = page.parse().expect("a page");
        let next = format!("</v2/apps/a/referrers/{subject}?page={}>; rel=\"next\"", page + 1);
        let more = (page + 1 < pages.len()).then_some(("link", next));
        Action::Answer(StatusCode::OK, [kind].into_iter().chain(more).collect(), pages[page].clone())
    })
    .await;
    let running = between(proxy.store("apps"), &target).await;
    register(&running, proxy.address, "a").await;
    let region = arrived(&running, "a", REGISTRY).await;
    assert!(region.warnings.is_empty(), "{:?}", region.warnings);
    assert!(all.iter().all(|one| target.get(digest(one)).is_some()));
    running.stop().await;
}

/// opencontainers/distribution-spec#459, project-zot/zot#1424: the subject must exist first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_written_before_what_refers_to_it() {
    let wants = Behavior { wants_subjects: true, ..LISTS };
    let (source, target) = (ScriptedRegistry::start(LISTS).await, ScriptedRegistry::start(wants).await);
    let running = between(source.store(), &target).await;
    let image = source.image(b"layer", Some("a"));
    let note = source.refer(&image, "a note");
    let signature = source.refer(&note, "of the note");
    register(&running, source.address, "a").await;
    let region = arrived(&running, "a", REGISTRY).await;
    assert!(region.warnings.is_empty(), "{:?}", region.warnings);
    assert!(target.get(digest(&note)).is_some() && target.get(digest(&signature)).is_some());
    running.stop().await;
}

/// aws/containers-roadmap#2179: the tag exists, refers to the same manifest, and is immutable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_stands_for_the_image_already_is_left_alone() {
    let keeps = Behavior { keeps_tags: true, ..LISTS };
    let (source, target) = (ScriptedRegistry::start(LISTS).await, ScriptedRegistry::start(keeps).await);
    let running = between(source.store(), &target).await;
    let image = source.image(b"layer", Some("a"));
    register(&running, source.address, "a").await;
    arrived(&running, "a", REGISTRY).await;
    let signature = source.refer(&image, "a signature");
    let request = RemoveImageRequest { image_id: "a".into(), ..Default::default() };
    running.images().await.remove_image(request).await.expect("it is removed");
    register(&running, source.address, "a").await;
    arrived(&running, "a", REGISTRY).await;
    assert!(target.get(digest(&signature)).is_some());
    running.stop().await;
}

/// Entries that other clients listed in a region are kept, with all of their annotations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_list_in_a_region_stays_as_it_is() {
    let (source, target) = (ScriptedRegistry::start(LISTS).await, ScriptedRegistry::start(Behavior::default()).await);
    let running = between(source.store(), &target).await;
    let image = source.image(b"layer", Some("a"));
    let note = source.refer(&image, "a note");
    let mut theirs = describe(MANIFEST, b"theirs");
    theirs["platform"] = json!({ "os": "linux", "os.features": ["z"] });
    theirs["x-theirs"] = json!({ "b": 1.5, "a": [null] });
    target.list(&image, &[theirs.clone()]);
    register(&running, source.address, "a").await;
    arrived(&running, "a", REGISTRY).await;
    let listed = target.read(&tag(&image, "")).expect("a list");
    assert!(listed.contains(&theirs.to_string()) && listed.contains(digest(&note)), "{listed}");
    running.stop().await;
}
