//! What an image is made of: its root, the manifests below it, and the blobs below them (OCI image specification 1.1, and
//! Docker's image manifest version 2, schema 2). Manifests are carried byte for byte; only what they refer to is read from
//! them.

use std::collections::HashSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Error, Result, Source};
use crate::domain::{Descriptor, Digest, ImageName};

/// The largest manifest or index that is read, in bytes: what the OCI distribution specification recommends.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// All manifests of an image together, in bytes: they are held in memory while it is copied.
const MAX_MANIFESTS_BYTES: u64 = 32 << 20;
/// The most manifests of an image.
const MAX_MANIFESTS: usize = 1_000;
/// The most blobs of an image.
const MAX_BLOBS: usize = 20_000;
/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 8;

/// The media type of an OCI image manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const MANIFEST_TYPES: [&str; 2] = [MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"];
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Everything that an image is made of, each thing once.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Its manifests and indexes with their content, every one before those that refer to it: the root is the last.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// Its configurations and layers.
    pub blobs: Vec<Descriptor>,
}

impl Tree {
    /// Reads the manifests of an image, from `root` down.
    pub async fn read(source: &dyn Source, name: &ImageName, root: &Descriptor) -> Result<Self> {
        let mut tree = Self { manifests: Vec::new(), blobs: Vec::new() };
        let mut seen = HashSet::new();
        let mut bytes = 0;
        // Depth first; a manifest is put down after those below it.
        let mut open = vec![(root.clone(), 0, None)];
        while let Some((descriptor, depth, content)) = open.pop() {
            if let Some(content) = content {
                tree.manifests.push((descriptor, content));
                continue;
            }
            if !seen.insert(descriptor.digest) {
                continue;
            }
            let digest = descriptor.digest;
            let what = || format!("the manifest {digest} of {name}");
            let kind = descriptor.media_type.as_str();
            if !INDEX_TYPES.contains(&kind) && !MANIFEST_TYPES.contains(&kind) {
                if depth == 0 {
                    return Err(Error::malformed(what(), format!("its media type is {kind:?}")));
                }
                tree.blobs.push(descriptor);
                continue;
            }
            bytes += descriptor.size;
            if seen.len() > MAX_BLOBS || tree.manifests.len() + open.len() > MAX_MANIFESTS + MAX_BLOBS {
                return Err(Error::malformed(what(), "the image has too many parts"));
            }
            if depth > MAX_DEPTH || bytes > MAX_MANIFESTS_BYTES || tree.manifests.len() > MAX_MANIFESTS {
                return Err(Error::malformed(what(), "there are too many manifests, or too deep"));
            }
            let content = source.read_manifest(name, &descriptor).await?;
            let below = references(kind, &content).map_err(|reason| Error::malformed(what(), reason))?;
            open.push((descriptor, depth, Some(content)));
            for reference in below {
                open.push((reference.parse().map_err(Error::digest(what()))?, depth + 1, None));
            }
        }
        Ok(tree)
    }

    /// Reads every blob again and compares it with its digest. The manifests were verified as they were read.
    pub async fn verify(&self, source: &dyn Source, name: &ImageName) -> Result<()> {
        for blob in &self.blobs {
            let mut chunks = source.read_blob(name, blob).await?;
            let mut hasher = Sha256::new();
            while let Some(chunk) = chunks.recv().await {
                hasher.update(chunk?);
            }
            let actual = Digest::new(hasher.finalize().into());
            if actual != blob.digest {
                return Err(Error::DigestMismatch { image: name.to_string(), expected: blob.digest, actual });
            }
        }
        Ok(())
    }

    /// The size of everything in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let manifests = self.manifests.iter().map(|(manifest, _)| manifest.size);
        manifests.chain(self.blobs.iter().map(|blob| blob.size)).sum()
    }
}

/// A descriptor as JSON has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reference {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Reference {
    pub fn parse(&self) -> std::result::Result<Descriptor, crate::domain::DigestError> {
        Ok(Descriptor { media_type: self.media_type.clone(), digest: self.digest.parse()?, size: self.size })
    }
}

/// What a manifest or an index refers to.
fn references(kind: &str, content: &[u8]) -> serde_json::Result<Vec<Reference>> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Reference>,
    }
    #[derive(Deserialize)]
    struct Manifest {
        config: Reference,
        layers: Vec<Reference>,
    }
    if INDEX_TYPES.contains(&kind) {
        return Ok(serde_json::from_slice::<Index>(content)?.manifests);
    }
    let manifest: Manifest = serde_json::from_slice(content)?;
    Ok(manifest.layers.into_iter().chain([manifest.config]).collect())
}
