//! What an image is made of: its root, the manifests below it, the blobs below them (OCI image specification 1.1, and Docker's
//! image manifest version 2, schema 2), and what is attached to it. Manifests are carried byte for byte; only what they refer to is
//! read from them.
//!
//! Everything that looks at an image looks at the same tree: its registration, the plan of a copy, the copy, and its verification.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{FutureExt as _, future::try_join};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Activity, BlobChunks, Error, Result, Source, attachments,
    budget::Budget,
    references::Place,
    referrers::ReferrersIndex,
    walk::{Missing, Walk},
};
use crate::domain::{Algorithm, Descriptor, Digest, DigestError, ImageName, Warnings};

/// The media type of an OCI image manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Manifests of an image, OCI's first.
pub(super) const MANIFEST_TYPES: [&str; 2] = [MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"];
/// Indexes of manifests, OCI's first.
pub(super) const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Everything that an image is made of, each thing once, and what is attached to it.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Its manifests and indexes with their content, every one before those that refer to it: the root is the last.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// Its configurations and layers.
    pub blobs: Vec<Descriptor>,
    /// What is attached to its manifests, and to what is attached to them: signatures, bills of materials.
    pub attachments: Vec<Attachment>,
    /// The blobs of what is attached, as far as the image does not have them itself.
    pub attached_blobs: Vec<Descriptor>,
    /// What is listed as referring to a manifest, of all that is attached.
    pub referrers: Vec<ReferrersIndex>,
    /// Entries of its indexes that were not there when it was registered.
    pub absent: Vec<Digest>,
    /// What could not be had of what is attached, and what is not carried.
    pub warnings: Warnings,
}

/// Something that is attached to an image: it travels with it, and never decides over whether the image can be carried.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The tag by which it is found; nothing if it is listed by what it refers to.
    pub tag: Option<String>,
    /// Its manifests, its own the last.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// Its blobs, by their places in the tree ([`Tree::blob`]).
    pub blobs: Vec<usize>,
}

impl Attachment {
    /// Its own manifest.
    #[must_use]
    pub fn root(&self) -> Option<&(Descriptor, Bytes)> {
        self.manifests.last()
    }
}

/// An image's size, and what of its indexes is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// The size of everything that the image is made of, in bytes, without what is attached to it.
    pub bytes: u64,
    /// Entries of its indexes that the source does not have.
    pub absent: Vec<Digest>,
}

impl Tree {
    /// Reads the manifests of an image, from `root` down. Of its indexes' entries, those in `absent` need not be there.
    pub async fn read(source: &dyn Source, name: &ImageName, root: &Descriptor, absent: &[Digest]) -> Result<Self> {
        let mut walk = Walk::new(source, name, Budget::default(), Missing::Known(absent));
        walk.down(root.clone(), Place::Root).await?;
        Ok(Self::from_walk(walk))
    }

    /// Measures an image, and finds out which entries of its indexes are not there.
    pub async fn measure(source: &dyn Source, name: &ImageName, root: &Descriptor) -> Result<Measure> {
        let mut walk = Walk::new(source, name, Budget::default(), Missing::Noted);
        walk.keeps = false;
        walk.down(root.clone(), Place::Root).await?;
        Ok(Measure { bytes: walk.budget.spent_bytes(), absent: walk.absent })
    }

    /// Reads the manifests of an image, and those of everything that is attached to it. What is wrong with an attachment is a warning.
    pub async fn read_with_attachments(
        source: &dyn Source,
        name: &ImageName,
        root: &Descriptor,
        absent: &[Digest],
    ) -> Result<Self> {
        let mut walk = Walk::new(source, name, Budget::default(), Missing::Known(absent));
        // Side by side: neither needs the other.
        let neighbors = source.neighbors(name, Instant::now()).map(Ok::<_, Error>);
        let ((), neighbors) = try_join(walk.down(root.clone(), Place::Root), neighbors).await?;
        let budget = walk.budget;
        let mut tree = Self::from_walk(walk);
        attachments::gather(source, name, &mut tree, budget, neighbors).await;
        Ok(tree)
    }

    fn from_walk(mut walk: Walk<'_>) -> Self {
        let manifests = walk.in_order();
        let Walk { blobs, absent, warnings, .. } = walk;
        Self { manifests, blobs, absent, warnings, ..Self::default() }
    }

    /// The size of everything in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let attached = self.attachments.iter().flat_map(|attachment| &attachment.manifests);
        let manifests = self.manifests.iter().chain(attached).map(|(manifest, _)| manifest.size);
        // What was read does not overflow; what a caller has put together might.
        manifests.chain(self.all_blobs().map(|blob| blob.size)).fold(0, u64::saturating_add)
    }

    /// The blobs of the image, and after them those of what is attached to it.
    pub fn all_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.iter().chain(&self.attached_blobs)
    }

    /// A blob by its place among them.
    #[must_use]
    pub fn blob(&self, place: usize) -> Option<&Descriptor> {
        match place.checked_sub(self.blobs.len()) {
            None => self.blobs.get(place),
            Some(attached) => self.attached_blobs.get(attached),
        }
    }

    /// Whether the image is whole without the blob at a place.
    #[must_use]
    pub fn is_attached(&self, place: usize) -> bool {
        place >= self.blobs.len()
    }

    /// The same image with only those attachments that are chosen, by their places. Lists name no other.
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

/// The digest that a blob's bytes have, by the algorithm of its own. `activity` counts them as they are read.
pub(super) async fn digest_of(
    source: &dyn Source,
    name: &ImageName,
    blob: &Descriptor,
    activity: &Activity,
) -> Result<Digest> {
    digest_of_chunks(source.read_blob(name, blob, 0, None).await?, blob.digest.algorithm(), activity).await
}

/// The digest that some chunks have together. `activity` counts them as they come.
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

    pub fn parse(&self) -> std::result::Result<Descriptor, DigestError> {
        Ok(Descriptor { media_type: self.media_type.clone(), digest: self.digest.parse()?, size: self.size })
    }
}
