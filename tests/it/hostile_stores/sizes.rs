//! Wrong sizes in the metadata of a store cause no large allocations and no overflows.

use std::{collections::HashMap, fs, sync::Arc, time::Instant};

use appferry::{
    client::Client,
    domain::{Descriptor, Digest, ImageName},
    storage::{
        Access, AccessKeys, Chunk, DirStore, Error, Location, ManifestGraph, Source as _, Store as _, open_bucket,
        ssrf_guard::Guard,
    },
};
use http::Method;
use serde_json::json;
use tokio::sync::mpsc;

use super::{MANIFEST, answer, blob, hostile, manifest, name, stage, store};
use crate::harness::{
    proxy::Proxy,
    site::{ADMIN, HOME, Site, container},
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Maximum size of a manifest in bytes.
const MOST: usize = 4 << 20;

/// Returns a manifest whose layers have distinct digests and state these sizes.
fn layers(sizes: impl IntoIterator<Item = u64>) -> String {
    layers_from(0, sizes)
}

fn layers_from(first: usize, sizes: impl IntoIterator<Item = u64>) -> String {
    let layer = |(number, size): (usize, u64)| {
        let digest = blob(&(first + number).to_le_bytes()).digest.to_string();
        json!({ "mediaType": "application/octet-stream", "digest": digest, "size": size })
    };
    let layers: Vec<_> = sizes.into_iter().enumerate().map(layer).collect();
    let config = json!({ "mediaType": "application/json", "digest": blob(b"{}").digest.to_string(), "size": 2 });
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers }).to_string()
}

/// Returns an index that states these sizes for the manifests.
fn index<'a>(manifests: impl IntoIterator<Item = (&'a Descriptor, u64)>) -> String {
    let entry = |(of, size): (&Descriptor, u64)| json!({ "mediaType": of.media_type, "digest": of.digest.to_string(), "size": size });
    let manifests: Vec<_> = manifests.into_iter().map(entry).collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string()
}

fn of(kind: &str, content: &str) -> Descriptor {
    Descriptor { media_type: kind.into(), ..blob(content.as_bytes()) }
}

/// Starts a registry with these manifests and no referrers. Every tag refers to the first manifest.
async fn registry(contents: Vec<(&'static str, String)>) -> Proxy {
    let root = contents[0].clone();
    let by_digest: HashMap<Digest, _> =
        contents.into_iter().map(|(kind, content)| (of(kind, &content).digest, (kind, content))).collect();
    hostile(move |request| {
        let Some((_, reference)) = request.path.split_once("/manifests/") else { return answer(404, vec![], "") };
        let (kind, content) = match reference.parse() {
            Ok(digest) => &by_digest[&digest],
            Err(_) => &root,
        };
        let digest = of(kind, content).digest.to_string();
        let headers = vec![("content-type", (*kind).to_owned()), ("docker-content-digest", digest)];
        let headers = if request.method == Method::HEAD {
            headers.into_iter().chain([("content-length", content.len().to_string())]).collect()
        } else {
            headers
        };
        answer(200, headers, if request.method == Method::HEAD { "" } else { content })
    })
    .await
}

async fn read(proxy: &Proxy, root: &Descriptor) -> Result<ManifestGraph, Error> {
    let store = store(proxy);
    let measured = ManifestGraph::measure(&store, &name(), root).await;
    let read = ManifestGraph::read(&store, &name(), root, &[]).await;
    assert_eq!(measured.as_ref().ok().map(|measure| measure.bytes), read.as_ref().map(ManifestGraph::size).ok());
    assert_eq!(measured.as_ref().err().map(ToString::to_string), read.as_ref().err().map(ToString::to_string));
    read
}

#[tokio::test]
async fn sums_that_overflow_are_refused() {
    const MOST_BYTES: u64 = i64::MAX.unsigned_abs();
    for (sizes, good) in [
        (vec![1 << 63, 1 << 63], false),
        (vec![1 << 63], false),
        (vec![MOST_BYTES, MOST_BYTES, 3], false),
        (vec![u64::MAX, 566], false),
        (vec![1 << 62, 1 << 61], true),
    ] {
        let content = layers(sizes.clone());
        let root = manifest(content.as_bytes());
        let proxy = registry(vec![(MANIFEST, content)]).await;
        match read(&proxy, &root).await {
            Ok(tree) => assert!(good && tree.size() == sizes.iter().sum::<u64>() + 2 + root.size, "{sizes:?}"),
            Err(error) => assert!(!good && error.to_string().contains("more than"), "{sizes:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn more_parts_than_an_image_may_have_are_refused() {
    for (counts, good) in
        [(vec![36_000], false), (vec![20_001], false), (vec![19_000], true), (vec![11_000, 11_000], false)]
    {
        // Different manifests have different layers, so that the total number of layers counts.
        let content = |(n, count): (usize, &usize)| (MANIFEST, layers_from(n * 100_000, vec![1; *count]));
        let contents: Vec<_> = counts.iter().enumerate().map(content).collect();
        let below: Vec<_> = contents.iter().map(|(kind, content)| of(kind, content)).collect();
        let root = index(below.iter().map(|of| (of, of.size)));
        let index_manifest = of(INDEX, &root);
        let proxy = registry([(INDEX, root)].into_iter().chain(contents).collect()).await;
        let read = read(&proxy, &index_manifest).await;
        assert_eq!(read.is_ok(), good, "{counts:?}: {:?}", read.err().map(|error| error.to_string()));
    }
}

#[tokio::test]
async fn a_manifest_of_another_size_than_is_said_is_refused() {
    let content = layers([1, 2]);
    let root = manifest(content.as_bytes());
    let proxy = registry(vec![(MANIFEST, content.clone())]).await;
    assert!(read(&proxy, &root).await.is_ok());
    for size in [0, 1, root.size - 1, root.size + 1, MOST as u64] {
        let refused = read(&proxy, &Descriptor { size, ..root.clone() }).await;
        assert!(matches!(refused, Err(Error::SizeMismatch { .. } | Error::Malformed { .. })), "{size}: {refused:?}");
    }
    // A directory store compares the stated size with the size of the file.
    let directory = tempfile::tempdir().expect("a directory");
    let blobs = directory.path().join("a/blobs/sha256");
    fs::create_dir_all(&blobs).expect("a layout");
    fs::write(blobs.join(root.digest.hex()), &content).expect("a blob");
    let store = DirStore::new(directory.path());
    let at = ImageName("a".into());
    ManifestGraph::read(&store, &at, &root, &[]).await.expect("it is one");
    let refused = ManifestGraph::read(&store, &at, &Descriptor { size: 1, ..root }, &[]).await;
    assert!(matches!(refused, Err(Error::SizeMismatch { .. })), "{refused:?}");
}

/// The referrers list is a sparse file of one tebibyte.
#[tokio::test]
async fn a_directory_has_nothing_read_that_is_too_large() {
    let directory = tempfile::tempdir().expect("a directory");
    let layout = directory.path().join("a");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a layout");
    let content = layers([1, 2]);
    let root = manifest(content.as_bytes());
    let list = of(INDEX, "anything");
    let tag = format!("sha256-{}", root.digest.hex());
    let entry = json!({
        "mediaType": INDEX, "digest": list.digest.to_string(), "size": 1_u64 << 40,
        "annotations": { "org.opencontainers.image.ref.name": tag },
    });
    fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string())
        .expect("an index");
    let file = fs::File::create(layout.join("blobs/sha256").join(list.digest.hex())).expect("a file");
    file.set_len(1 << 40).expect("a hole");
    let store = DirStore::new(directory.path());
    let started = Instant::now();
    fs::write(layout.join("blobs/sha256").join(root.digest.hex()), &content).expect("a manifest");
    let tree =
        ManifestGraph::read_with_attachments(&store, &ImageName("a".into()), &root, &[]).await.expect("it is one");
    assert!(tree.warnings.iter().any(|warning| warning.contains("the most is")), "{:?}", tree.warnings);
    assert!(started.elapsed().as_secs() < 5);
}

/// The client library reads error responses whole, so the service must limit the responses of a bucket.
#[tokio::test]
async fn no_answer_of_a_bucket_is_held_whole() {
    let page = format!(
        "<InitiateMultipartUploadResult><UploadId>{}</UploadId></InitiateMultipartUploadResult>",
        "u".repeat(64 << 20)
    );
    let proxy =
        hostile(
            move |request| {
                if request.method == Method::POST { answer(200, vec![], &page) } else { answer(403, vec![], &page) }
            },
        )
        .await;
    let Ok(Location::Object(location)) = "s3://apps/images".parse() else { panic!("it is one") };
    let access = Access {
        endpoint: Some(format!("http://{}", proxy.address)),
        keys: AccessKeys::Anonymous,
        allow_http: true,
        ..Access::default()
    };
    let bucket = open_bucket(location, &access, Guard::new(true)).expect("a bucket");
    let (sender, chunks) = mpsc::channel(2);
    sender.send(Chunk::Data("x".into())).await.expect("there is space");
    let large = Descriptor { size: 64 << 20, ..blob(b"x") };
    let refused = bucket.write_blob(&stage(), &large, 0, chunks).await.expect_err("no upload is begun");
    assert!(refused.to_string().len() < 1_200 && refused.to_string().contains("limit"), "{refused}");
    let refused = bucket.root(&name()).await.expect_err("it is refused");
    assert!(refused.to_string().len() < 1_200, "{refused}");
}

/// Returns the peak resident memory of a process in bytes.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

/// Registers 48 images concurrently, 16 each of three kinds: indexes that state one byte for manifests of 4 MiB,
/// indexes that state the true size of such manifests, and indexes whose annotations take more memory than their
/// encoding.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lies_takes_little_memory() {
    let filler = format!("{}{}", layers([1]), " ".repeat(MOST));
    let fat: Vec<_> = (0..24).map(|n| format!("{}{n}", &filler[..MOST - 3])).collect();
    let below: Vec<_> = fat.iter().map(|content| of(MANIFEST, content)).collect();
    let lying = index(below.iter().map(|of| (of, 1)));
    let honest = index(below.iter().map(|of| (of, of.size)));
    let many: Vec<String> = (0..MOST / 16).map(|n| format!("\"{n:06}\":[[]]")).collect();
    let bomb = format!("{{\"schemaVersion\":2,\"manifests\":[],\"annotations\":{{{}}}}}", many.join(","));
    let proxy = hostile({
        let below: HashMap<_, _> = below.iter().map(|of| of.digest).zip(fat).collect();
        move |request| {
            let (kind, content) = match request.path.rsplit_once('/').map_or("", |(_, last)| last) {
                "lying" => (INDEX, &lying),
                "honest" => (INDEX, &honest),
                "bomb" => (INDEX, &bomb),
                digest => match digest.parse().ok().and_then(|digest| below.get(&digest)) {
                    Some(content) => (MANIFEST, content),
                    None => return answer(404, vec![], ""),
                },
            };
            answer(
                200,
                vec![("content-type", kind.to_owned())],
                if request.method == Method::HEAD { "" } else { content },
            )
        }
    })
    .await;
    let site = Site::new().with(HOME, proxy.store("apps"), "");
    let served = site.serve().await;
    let before = peak(served.id());
    let client =
        Client::builder(format!("http://{}", served.address)).token(ADMIN).connect().await.expect("it is there");
    let client = Arc::new(client);
    let adding: Vec<_> = (0..48)
        .map(|number| {
            let (client, tag) = (Arc::clone(&client), ["lying", "honest", "bomb"][number % 3]);
            let url = format!("{}/apps/a:{tag}", proxy.address);
            tokio::spawn(async move { client.add_image(container(&format!("image-{number}"), &url)).await })
        })
        .collect();
    for added in adding {
        let added = added.await.expect("it ends");
        assert!(
            added.is_err() || added.as_ref().is_ok_and(|id| id.ends_with(|c: char| c.is_ascii_digit())),
            "{added:?}"
        );
    }
    let taken = peak(served.id()).saturating_sub(before) >> 20;
    assert!(taken < 128, "{taken} MiB");
}
