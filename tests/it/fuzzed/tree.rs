//! Fuzz target for manifest graphs with wrong sizes: a graph read from any source matches the stated sizes, is bounded,
//! and is in order.

use std::collections::{HashMap, HashSet};

use appferry::{
    domain::{Algorithm, Descriptor, Digest, ImageName},
    storage::{BlobChunks, Error, ManifestGraph, Measure, Result, Source},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use serde_json::json;

const KINDS: [&str; 3] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/octet-stream",
];
/// Limit for the total size of all manifests in bytes.
const MANIFESTS: u64 = 16 << 20;

fn digest(content: &[u8]) -> Digest {
    Algorithm::Sha256.digest(content)
}

/// A source that returns the manifest with the requested digest, and ignores the requested size.
#[derive(Debug, Default)]
struct Liar(HashMap<Digest, Bytes>);

#[async_trait]
impl Source for Liar {
    async fn root(&self, _: &ImageName) -> Result<Option<Descriptor>> {
        Ok(None)
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        let missing = || Error::BlobMissing { digest: manifest.digest, image: name.to_string() };
        self.0.get(&manifest.digest).cloned().ok_or_else(missing)
    }

    async fn read_blob(&self, _: &ImageName, _: &Descriptor, _: u64, _: Option<u64>) -> Result<BlobChunks> {
        Err(Error::Overtaken)
    }
}

/// The rest of the input, each byte of which determines a choice.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Returns the size that a descriptor states for content of `real` bytes.
    fn size(&mut self, real: u64) -> u64 {
        match self.next() {
            0..=159 => real,
            160..=175 => real + 1,
            176..=191 => real.saturating_sub(1),
            192..=207 => 1,
            208..=215 => 0,
            216..=223 => 1 << 63,
            224..=231 => u64::MAX - real,
            232..=239 => i64::MAX.unsigned_abs(),
            240..=247 => 4 << 20,
            _ => u64::MAX,
        }
    }
}

/// Builds manifests from the leaves up. Returns a source with the manifests, and the descriptor of the last one, which
/// is the root.
fn build(choices: &mut Choices) -> (Liar, Option<Descriptor>) {
    let mut source = Liar::default();
    let mut descriptors: Vec<(Digest, u64)> = Vec::new();
    let mut root = None;
    while !choices.0.is_empty() && descriptors.len() < 64 {
        let index = choices.next() % 2 == 1;
        let entries: Vec<_> = (0..choices.next() % 8)
            .map(|_| {
                let pick = choices.next();
                let (digest, size) = match descriptors.len() {
                    0 => (digest(&[pick]), u64::from(pick)),
                    count if pick < 160 => descriptors[usize::from(pick) % count],
                    _ => (digest(&[pick]), u64::from(pick)),
                };
                let kind = KINDS[usize::from(choices.next()) % KINDS.len()];
                json!({ "mediaType": kind, "digest": digest.to_string(), "size": choices.size(size) })
            })
            .collect();
        let config = json!({ "mediaType": KINDS[2], "digest": digest(b"{}").to_string(), "size": choices.size(2) });
        let content = if index {
            json!({ "schemaVersion": 2, "manifests": entries })
        } else {
            json!({ "schemaVersion": 2, "config": config, "layers": entries })
        };
        let mut content = content.to_string();
        if choices.next() > 240 {
            content.truncate(content.len() / 2);
        }
        let (digest, size) = (digest(content.as_bytes()), content.len() as u64);
        source.0.insert(digest, content.into());
        descriptors.push((digest, size));
        root = Some(Descriptor { media_type: KINDS[usize::from(index)].into(), digest, size: choices.size(size) });
    }
    (source, root)
}

fn check(source: &Liar, root: &Descriptor) {
    let name = ImageName("a".into());
    // This source never waits.
    let measured = ManifestGraph::measure(source, &name, root).now_or_never().expect("nothing waits");
    // Entries that were absent when measured are not reported as missing later.
    let absent = measured.as_ref().map(|measure| measure.absent.clone()).unwrap_or_default();
    let read = ManifestGraph::read(source, &name, root, &absent).now_or_never().expect("nothing waits");
    let with_attachments =
        ManifestGraph::read_with_attachments(source, &name, root, &absent).now_or_never().expect("nothing waits");
    assert_eq!(read.is_ok(), measured.is_ok());
    assert_eq!(read.is_ok(), with_attachments.is_ok());
    let Ok(tree) = read else { return };
    let sum = |sizes: &mut dyn Iterator<Item = u64>| {
        sizes.fold(0_u64, |sum, size| sum.checked_add(size).expect("no overflow"))
    };
    let manifests = sum(&mut tree.manifests.iter().map(|(manifest, _)| manifest.size));
    let blobs = sum(&mut tree.blobs.iter().map(|blob| blob.size));
    assert!(manifests <= MANIFESTS);
    assert!(manifests.checked_add(blobs).is_some_and(|all| all == tree.size() && i64::try_from(all).is_ok()));
    assert_eq!(measured.ok(), Some(Measure { bytes: tree.size(), absent: tree.absent.clone() }));
    let mut seen = HashSet::new();
    for (manifest, content) in &tree.manifests {
        assert_eq!((content.len() as u64, digest(content)), (manifest.size, manifest.digest));
        assert!(seen.insert(manifest.digest), "each exists once");
    }
    assert!(tree.blobs.iter().all(|blob| seen.insert(blob.digest)), "each exists once");
    assert_eq!(tree.manifests.last().map(|(last, _)| last.digest), Some(root.digest));
}

pub fn run(data: &[u8]) {
    // Checks the input itself as a manifest and as an index.
    let raw = Liar([(digest(data), Bytes::copy_from_slice(data))].into());
    for kind in &KINDS[..2] {
        check(&raw, &Descriptor { media_type: (*kind).to_owned(), digest: digest(data), size: data.len() as u64 });
    }
    // Checks manifests that are generated by choices from the input.
    let (source, root) = build(&mut Choices(data));
    if let Some(root) = root {
        check(&source, &root);
    }
}
