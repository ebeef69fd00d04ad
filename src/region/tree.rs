//! What an image is made of: its root, the manifests below it, and the blobs below them (OCI image specification 1.1, and
//! Docker's image manifest version 2, schema 2). Manifests are carried byte for byte; only what they refer to is read from
//! them.

use std::{
    collections::{HashSet, VecDeque},
    mem,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Activity, BlobChunks, Error, Result, Source};
use crate::domain::{Descriptor, Digest, ForeignText, ImageName};

/// The largest manifest or index that is read, in bytes: what the OCI distribution specification recommends.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// All manifests of an image together, in bytes: they are held in memory while it is copied.
const MAX_MANIFESTS_BYTES: u64 = 16 << 20;
/// What a list of referrers may have in bytes, all its pages together.
pub(super) const MAX_REFERRERS_BYTES: u64 = 1 << 20;
/// All parts of an image together, in bytes: what a database's signed number holds.
const MAX_IMAGE_BYTES: u64 = i64::MAX.unsigned_abs();
/// The most manifests of an image.
const MAX_MANIFESTS: usize = 1_000;
/// The most parts of an image; and the most that one manifest may name, each as often as it does.
const MAX_PARTS: usize = 20_000;
/// Lists of referrers that are asked for at the same time.
const LISTS_AT_ONCE: usize = 8;
/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 8;

/// The media type of an OCI image manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Manifests of an image, OCI's first.
pub(super) const MANIFEST_TYPES: [&str; 2] = [MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"];
/// Indexes of manifests, OCI's first.
pub(super) const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Everything that an image is made of, each thing once.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Its manifests and indexes with their content, every one before those that refer to it: the root is the last.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// Its configurations and layers, and those of what refers to it.
    pub blobs: Vec<Descriptor>,
    /// What refers to its manifests, and to what does so: signatures, bills of materials.
    pub referrers: Vec<ReferrersIndex>,
}

impl Tree {
    /// Reads the manifests of an image, from `root` down.
    pub async fn read(source: &dyn Source, name: &ImageName, root: &Descriptor) -> Result<Self> {
        let mut walk = Walk::keeping(true);
        walk.down(source, name, root).await?;
        Ok(walk.tree)
    }

    /// The size of everything that an image is made of, in bytes, without what refers to it. No more than one manifest is held at a time.
    pub async fn measure(source: &dyn Source, name: &ImageName, root: &Descriptor) -> Result<u64> {
        let mut walk = Walk::keeping(false);
        walk.down(source, name, root).await?;
        Ok(walk.total)
    }

    /// Reads the manifests of an image, and those of everything that refers to it: that travels with it.
    pub async fn read_with_referrers(source: &dyn Source, name: &ImageName, root: &Descriptor) -> Result<Self> {
        let mut walk = Walk::keeping(true);
        walk.down(source, name, root).await?;
        let image = mem::take(&mut walk.tree.manifests);
        let mut subjects: VecDeque<Digest> = image.iter().map(|(manifest, _)| manifest.digest).collect();
        while !subjects.is_empty() {
            let asked: Vec<_> =
                subjects.drain(..).map(|subject| ReferrersIndex::read(source, name, subject).boxed()).collect();
            let found: Vec<_> = stream::iter(asked).buffered(LISTS_AT_ONCE).try_collect().await?;
            for index in found.into_iter().filter(|index| !index.entries.is_empty()) {
                for entry in &index.entries {
                    let known = walk.tree.manifests.len();
                    let what = format!("a referrer of {}", index.subject);
                    walk.down(source, name, &entry.0.parse().map_err(Error::digest(what))?).await?;
                    subjects.extend(walk.tree.manifests[known..].iter().map(|(manifest, _)| manifest.digest));
                }
                walk.tree.referrers.push(index);
            }
        }
        // The image's root stays the last.
        walk.tree.manifests.extend(image);
        Ok(walk.tree)
    }

    /// The size of everything in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let manifests = self.manifests.iter().map(|(manifest, _)| manifest.size);
        // What was read does not overflow; what a caller has put together might.
        manifests.chain(self.blobs.iter().map(|blob| blob.size)).fold(0, u64::saturating_add)
    }
}

/// A walk through an image's manifests.
#[derive(Debug)]
struct Walk {
    tree: Tree,
    /// Whether what is read is kept.
    keeps: bool,
    seen: HashSet<Digest>,
    manifests: usize,
    /// The bytes of the manifests, and of everything.
    bytes: u64,
    total: u64,
}

impl Walk {
    fn keeping(keeps: bool) -> Self {
        let tree = Tree { manifests: Vec::new(), blobs: Vec::new(), referrers: Vec::new() };
        Self { tree, keeps, seen: HashSet::new(), manifests: 0, bytes: 0, total: 0 }
    }

    /// Counts a part, before anything of it is read.
    fn count(&mut self, part: &Descriptor, what: impl Fn() -> String) -> Result<()> {
        let total = self.total.checked_add(part.size).filter(|total| *total <= MAX_IMAGE_BYTES);
        self.total = total.ok_or_else(|| {
            Error::malformed(
                what(),
                format!("with {} bytes of one part, it has more than {MAX_IMAGE_BYTES}", part.size),
            )
        })?;
        Ok(())
    }

    /// Counts a manifest, which is `depth` indexes deep, before anything of it is read.
    fn count_manifest(&mut self, manifest: &Descriptor, depth: usize, what: impl Fn() -> String) -> Result<()> {
        self.manifests += 1;
        self.bytes = self.bytes.saturating_add(manifest.size);
        let reason = if depth > MAX_DEPTH {
            format!("it is more than {MAX_DEPTH} indexes deep")
        } else if self.manifests > MAX_MANIFESTS {
            format!("the image has more than {MAX_MANIFESTS} manifests")
        } else if manifest.size > MAX_MANIFEST_BYTES {
            format!("it has {} bytes, the most is {MAX_MANIFEST_BYTES}", manifest.size)
        } else if self.bytes > MAX_MANIFESTS_BYTES {
            format!("the image's manifests have more than {MAX_MANIFESTS_BYTES} bytes together")
        } else {
            return Ok(());
        };
        Err(Error::malformed(what(), reason))
    }

    /// Takes in everything from a manifest or an index down that is not known yet.
    async fn down(&mut self, source: &dyn Source, name: &ImageName, root: &Descriptor) -> Result<()> {
        // Depth first; a manifest is put down after those below it.
        let mut open = vec![(root.clone(), 0, None)];
        while let Some((descriptor, depth, content)) = open.pop() {
            if let Some(content) = content {
                self.tree.manifests.push((descriptor, content));
                continue;
            }
            if !self.seen.insert(descriptor.digest) {
                continue;
            }
            let digest = descriptor.digest;
            let what = || format!("the manifest {digest} of {name}");
            let kind = descriptor.media_type.as_str();
            if !INDEX_TYPES.contains(&kind) && !MANIFEST_TYPES.contains(&kind) {
                if depth == 0 {
                    return Err(Error::malformed(what(), format!("its media type is {:?}", ForeignText::value(kind))));
                }
                self.count(&descriptor, what)?;
                if self.keeps {
                    self.tree.blobs.push(descriptor);
                }
                continue;
            }
            self.count_manifest(&descriptor, depth, what)?;
            self.count(&descriptor, what)?;
            let content = source.read_manifest(name, &descriptor).await?;
            if content.len() as u64 != descriptor.size {
                let (image, actual) = (name.to_string(), content.len() as u64);
                return Err(Error::SizeMismatch { image, digest, expected: descriptor.size, actual });
            }
            let below = references(kind, &content).map_err(|reason| Error::malformed(what(), reason))?;
            if self.seen.len() + open.len() + below.len() > MAX_PARTS {
                return Err(Error::malformed(what(), format!("the image has more than {MAX_PARTS} parts")));
            }
            if self.keeps {
                open.push((descriptor, depth, Some(content)));
            }
            for reference in below {
                open.push((reference.parse().map_err(Error::digest(what()))?, depth + 1, None));
            }
        }
        Ok(())
    }
}

/// The digest that a blob's bytes have. `activity` counts them as they are read.
pub(super) async fn digest_of(
    source: &dyn Source,
    name: &ImageName,
    blob: &Descriptor,
    activity: &Activity,
) -> Result<Digest> {
    digest_of_chunks(source.read_blob(name, blob, 0, None).await?, activity).await
}

/// The digest that some chunks have together. `activity` counts them as they come.
pub(super) async fn digest_of_chunks(mut chunks: BlobChunks, activity: &Activity) -> Result<Digest> {
    let mut hasher = Sha256::new();
    while let Some(chunk) = chunks.recv().await {
        hasher.update(chunk?);
        activity.tick();
    }
    Ok(Digest::new(hasher.finalize().into()))
}

/// The digest of some bytes.
pub(super) fn digest(content: &[u8]) -> Digest {
    Digest::new(Sha256::digest(content).into())
}

/// What refers to one manifest.
#[derive(Debug, Clone)]
pub struct ReferrersIndex {
    /// The manifest.
    pub subject: Digest,
    /// The manifests that refer to it.
    pub entries: Vec<Entry>,
}

impl ReferrersIndex {
    async fn read(source: &dyn Source, name: &ImageName, subject: Digest) -> Result<Self> {
        Ok(Self { subject, entries: source.referrers(name, subject).await? })
    }

    /// The same, and what else is listed already.
    pub(super) fn merged_with(&self, there: Vec<Entry>) -> Self {
        let mut entries = self.entries.clone();
        entries
            .extend(there.into_iter().filter(|entry| !self.entries.iter().any(|own| own.0.digest == entry.0.digest)));
        Self { subject: self.subject, entries }
    }

    /// The index that lists them (OCI distribution specification 1.1, "Referrers Tag Schema").
    pub(super) fn index(&self) -> (Descriptor, Bytes) {
        let manifests: Vec<&Reference> = self.entries.iter().map(|entry| &entry.0).collect();
        let content = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": manifests });
        let content = Bytes::from(content.to_string());
        let descriptor =
            Descriptor { media_type: INDEX_TYPES[0].to_owned(), digest: digest(&content), size: content.len() as u64 };
        (descriptor, content)
    }
}

/// The tag by which what refers to a manifest is found where there is no other way ("Referrers Tag Schema").
pub(super) fn referrers_tag(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// Refuses a list of referrers that says of itself that it is too large.
pub(super) fn fits_list(list: &Descriptor) -> Result<()> {
    if list.size <= MAX_REFERRERS_BYTES {
        return Ok(());
    }
    let reason = format!("it has {} bytes, the most is {MAX_REFERRERS_BYTES}", list.size);
    Err(Error::malformed(format!("the list of referrers {}", list.digest), reason))
}

/// Whether a tag is one that lists what refers to a manifest.
pub(super) fn is_referrers_tag(tag: &str) -> bool {
    tag.strip_prefix("sha256-").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A manifest as an index lists it, with all that the index says of it.
#[derive(Debug, Clone)]
pub struct Entry(pub(super) Reference);

impl Entry {
    /// Its digest, if it is one that is understood.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.0.digest.parse().ok()
    }
}

/// The manifests that an index lists.
pub(super) fn entries(index: &[u8]) -> serde_json::Result<Vec<Entry>> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Reference>,
    }
    let index: Index = serde_json::from_slice(index)?;
    Ok(index.manifests.into_iter().map(Entry).collect())
}

/// A descriptor as JSON has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reference {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Reference {
    pub fn new(of: &Descriptor, annotations: Option<serde_json::Map<String, serde_json::Value>>) -> Self {
        let digest = of.digest.to_string();
        Self { media_type: of.media_type.clone(), digest, size: of.size, artifact_type: None, annotations }
    }

    pub fn parse(&self) -> std::result::Result<Descriptor, crate::domain::DigestError> {
        Ok(Descriptor { media_type: self.media_type.clone(), digest: self.digest.parse()?, size: self.size })
    }
}

/// A descriptor as far as a walk needs it: annotations, which may take many times the memory that they have bytes, are left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    media_type: String,
    digest: String,
    size: u64,
}

impl Part {
    fn parse(self) -> std::result::Result<Descriptor, crate::domain::DigestError> {
        Ok(Descriptor { digest: self.digest.parse()?, media_type: self.media_type, size: self.size })
    }
}

/// What a manifest or an index refers to.
fn references(kind: &str, content: &[u8]) -> serde_json::Result<Vec<Part>> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Part>,
    }
    #[derive(Deserialize)]
    struct Manifest {
        config: Part,
        layers: Vec<Part>,
    }
    if INDEX_TYPES.contains(&kind) {
        return Ok(serde_json::from_slice::<Index>(content)?.manifests);
    }
    let manifest: Manifest = serde_json::from_slice(content)?;
    Ok(manifest.layers.into_iter().chain([manifest.config]).collect())
}
