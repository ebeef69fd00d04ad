//! The manifest graph of an image: its root, the manifests below it, their blobs (OCI image specification 1.1, and
//! Docker's image manifest version 2, schema 2), and the attachments. Manifests are copied byte for byte; only their
//! references are parsed.
//!
//! Registration, planning, copying and verification all use the same graph.

use std::collections::BTreeSet;

use bytes::Bytes;
use domain::{Algorithm, Descriptor, Digest, DigestError, ImageName, Warnings};
use futures_util::{FutureExt as _, future::try_join};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Activity, BlobChunks, Error, Result, Source, attachments,
    budget::Budget,
    graph_walk::{Missing, Walk},
    references::Place,
    referrers::ReferrersIndex,
};

/// The media type of an OCI image manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media types of image manifests, OCI's first.
pub(super) const MANIFEST_TYPES: [&str; 2] = [MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"];
/// The media types of indexes, OCI's first.
pub(super) const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// The parts of an image, each once, and its attachments.
#[derive(Debug, Clone, Default)]
pub struct ManifestGraph {
    /// The manifests and indexes with their content, each before those that refer to it: the root is the last.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// The configurations and layers.
    pub blobs: Vec<Descriptor>,
    /// The attachments of the image's manifests and of other attachments: signatures, bills of materials.
    pub attachments: Vec<Attachment>,
    /// The blobs that only attachments have, and the image itself does not.
    pub attached_blobs: Vec<Descriptor>,
    /// The lists of referrers, limited to the attachments.
    pub referrers: Vec<ReferrersIndex>,
    /// Entries of the image's indexes that were missing at registration.
    pub absent: Vec<Digest>,
    /// Attachments that can't be read, and content that is not copied.
    pub warnings: Warnings,
}

/// An attachment of an image. It is copied with the image. An error of an attachment never fails the copy of the image.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The attachment's tag; `None` if a list of referrers names it.
    pub tag: Option<String>,
    /// The attachment's manifests, its root last.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// The indices of the attachment's blobs in the graph, as [`ManifestGraph::blob`] takes them.
    pub blobs: Vec<usize>,
}

impl Attachment {
    /// Returns the attachment's root manifest.
    #[must_use]
    pub fn root(&self) -> Option<&(Descriptor, Bytes)> {
        self.manifests.last()
    }
}

/// An image's size, and the missing entries of its indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// The size of all parts of the image in bytes, without attachments.
    pub bytes: u64,
    /// The digests of index entries that the source does not have.
    pub absent: Vec<Digest>,
}

impl ManifestGraph {
    /// Reads the manifests of an image from `root` down. The index entries in `absent` may be missing.
    pub async fn read(source: &dyn Source, name: &ImageName, root: &Descriptor, absent: &[Digest]) -> Result<Self> {
        let mut walk = Walk::new(source, name, Budget::default(), Missing::Known(absent));
        walk.down(root.clone(), Place::Root).await?;
        Ok(Self::from_walk(walk))
    }

    /// Measures an image and finds the missing entries of its indexes.
    pub async fn measure(source: &dyn Source, name: &ImageName, root: &Descriptor) -> Result<Measure> {
        let mut walk = Walk::new(source, name, Budget::default(), Missing::Noted);
        walk.keeps = false;
        walk.down(root.clone(), Place::Root).await?;
        Ok(Measure { bytes: walk.budget.spent_bytes(), absent: walk.absent })
    }

    /// Reads the manifests of an image and of its attachments. Failures of attachments become warnings.
    pub async fn read_with_attachments(
        source: &dyn Source,
        name: &ImageName,
        root: &Descriptor,
        absent: &[Digest],
    ) -> Result<Self> {
        let mut walk = Walk::new(source, name, Budget::default(), Missing::Known(absent));
        // The reads are independent of each other and run concurrently.
        let neighbors = source.neighbors(name, Instant::now()).map(Ok::<_, Error>);
        let ((), neighbors) = try_join(walk.down(root.clone(), Place::Root), neighbors).await?;
        let budget = walk.budget;
        let mut graph = Self::from_walk(walk);
        attachments::gather(source, name, &mut graph, budget, neighbors).await;
        Ok(graph)
    }

    fn from_walk(mut walk: Walk<'_>) -> Self {
        let manifests = walk.in_order();
        let Walk { blobs, absent, warnings, .. } = walk;
        Self { manifests, blobs, absent, warnings, ..Self::default() }
    }

    /// Returns the size of all parts and attachments, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let attached = self.attachments.iter().flat_map(|attachment| &attachment.manifests);
        let manifests = self.manifests.iter().chain(attached).map(|(manifest, _)| manifest.size);
        // The size of a graph read from a source does not overflow; that of a graph built by a caller might.
        manifests.chain(self.all_blobs().map(|blob| blob.size)).fold(0, u64::saturating_add)
    }

    /// Returns the blobs of the image, followed by those of the attachments.
    pub fn all_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.iter().chain(&self.attached_blobs)
    }

    /// Returns the blob at an index of [`ManifestGraph::all_blobs`].
    #[must_use]
    pub fn blob(&self, place: usize) -> Option<&Descriptor> {
        match place.checked_sub(self.blobs.len()) {
            None => self.blobs.get(place),
            Some(attached) => self.attached_blobs.get(attached),
        }
    }

    /// Returns whether the blob at an index of [`ManifestGraph::all_blobs`] belongs only to attachments.
    #[must_use]
    pub fn is_attached(&self, place: usize) -> bool {
        place >= self.blobs.len()
    }

    /// Returns the same image with only the attachments at the chosen indices. The lists of referrers are reduced
    /// accordingly.
    #[must_use]
    pub fn with_attachments(&self, chosen: &BTreeSet<usize>) -> Self {
        let kept = self.attachments.iter().enumerate().filter(|(place, _)| chosen.contains(place));
        let attachments: Vec<Attachment> = kept.map(|(_, attachment)| attachment.clone()).collect();
        let attached = attachments.iter().filter_map(|attachment| Some(attachment.root()?.0.digest));
        let carried: BTreeSet<Digest> = attached.chain(self.manifests.iter().map(|(own, _)| own.digest)).collect();
        let referrers = self.referrers.iter().map(|index| {
            let entries =
                index.entries.iter().filter(|entry| entry.digest().is_some_and(|digest| carried.contains(&digest)));
            ReferrersIndex { subject: index.subject, entries: entries.cloned().collect() }
        });
        let referrers = referrers.filter(|index| !index.entries.is_empty()).collect();
        Self { attachments, referrers, ..self.clone() }
    }
}

/// Computes the digest of a blob's bytes with the algorithm of the blob's digest. Ticks `activity` as the bytes are
/// read.
pub(super) async fn digest_of(
    source: &dyn Source,
    name: &ImageName,
    blob: &Descriptor,
    activity: &Activity,
) -> Result<Digest> {
    digest_of_chunks(source.read_blob(name, blob, 0, None).await?, blob.digest.algorithm(), activity).await
}

/// Computes the digest of a stream of chunks. Ticks `activity` as the chunks arrive.
pub(super) async fn digest_of_chunks(
    mut chunks: BlobChunks,
    algorithm: Algorithm,
    activity: &Activity,
) -> Result<Digest> {
    let mut hasher = algorithm.hasher();
    while let Some(chunk) = chunks.recv().await {
        hasher.update(&chunk?);
        activity.tick();
    }
    Ok(hasher.finish())
}

/// A descriptor in JSON.
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

    pub fn parse(&self) -> std::result::Result<Descriptor, DigestError> {
        Ok(Descriptor { media_type: self.media_type.clone(), digest: self.digest.parse()?, size: self.size })
    }
}
