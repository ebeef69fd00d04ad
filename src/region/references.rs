//! What a manifest refers to, by the place where it says so.

use serde::{Deserialize, de::IgnoredAny};

use super::tree::{INDEX_TYPES, MANIFEST_TYPES};
use crate::domain::{Descriptor, DigestError};

/// A manifest of an artifact, as registries from before OCI 1.1 have them: a list of blobs.
const ARTIFACT_TYPE: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// Where something stands that is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An image's own manifest, of a type that is known.
    Root,
    /// What is attached to an image: a manifest of any type.
    Attached,
    /// An entry of an index.
    Entry,
    /// A configuration or a layer.
    Blob,
    /// A layer that others give out.
    Foreign,
}

/// What a manifest says of one part. Annotations, which may take many times the memory that they have bytes, are left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    media_type: String,
    digest: String,
    size: u64,
    /// Where else the content is to be had.
    #[serde(default)]
    urls: Option<Vec<IgnoredAny>>,
}

/// What is read of a manifest.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Reference>>,
    config: Option<Reference>,
    layers: Option<Vec<Reference>>,
    blobs: Option<Vec<Reference>>,
}

/// Whether it is known what manifests of a type have.
pub fn is_known(kind: &str) -> bool {
    INDEX_TYPES.contains(&kind) || MANIFEST_TYPES.contains(&kind) || kind == ARTIFACT_TYPE
}

/// What a manifest or an index refers to. One of a type that is not known says by its content what it is.
pub fn references(kind: &str, content: &[u8]) -> serde_json::Result<Vec<(Reference, Place)>> {
    let Content { schema_version, media_type, manifests, config, layers, blobs } = serde_json::from_slice(content)?;
    let missing = |field| Err(serde::de::Error::missing_field(field));
    let (is_index, is_manifest) = (INDEX_TYPES.contains(&kind), MANIFEST_TYPES.contains(&kind));
    if is_index && manifests.is_none() {
        return missing("manifests");
    }
    if is_manifest && config.is_none() {
        return missing("config");
    }
    if !is_known(kind) && schema_version.is_none() && media_type.as_deref() != Some(kind) {
        return missing("mediaType");
    }
    let entries = manifests.filter(|_| !is_manifest).unwrap_or_default();
    let blobs = layers.into_iter().chain(blobs).flatten().chain(config).filter(|_| !is_index);
    let entries = entries.into_iter().map(|entry| (entry, Place::Entry));
    let blobs = blobs.map(|blob| {
        let place = if blob.urls.as_ref().is_some_and(|urls| !urls.is_empty()) { Place::Foreign } else { Place::Blob };
        (blob, place)
    });
    Ok(entries.chain(blobs).collect())
}

impl Reference {
    /// What it refers to.
    pub fn parse(self) -> std::result::Result<Descriptor, DigestError> {
        Ok(Descriptor { digest: self.digest.parse()?, media_type: self.media_type, size: self.size })
    }
}
