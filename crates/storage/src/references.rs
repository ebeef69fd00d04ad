//! Parses a manifest's references and determines the role of each.

use domain::{Descriptor, DigestError};
use serde::{Deserialize, de::IgnoredAny};

use super::manifest_graph::{INDEX_TYPES, MANIFEST_TYPES};

/// The type of artifact manifests in registries that predate OCI 1.1. They list blobs.
const ARTIFACT_TYPE: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// The role of a referenced part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An image's root manifest, of a known type.
    Root,
    /// An attachment's manifest, of any type.
    Attached,
    /// An entry of an index.
    Entry,
    /// A configuration or a layer.
    Blob,
    /// A layer that is distributed from other URLs.
    Foreign,
}

/// A manifest's reference to one part. Annotations are skipped, because they may take many times their size in memory.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    media_type: String,
    digest: String,
    size: u64,
    /// Other URLs of the content.
    #[serde(default)]
    urls: Option<Vec<IgnoredAny>>,
}

/// The parsed fields of a manifest.
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

/// Returns whether a media type is a known type of manifests or indexes.
pub fn is_known(kind: &str) -> bool {
    INDEX_TYPES.contains(&kind) || MANIFEST_TYPES.contains(&kind) || kind == ARTIFACT_TYPE
}

/// Returns the references of a manifest or an index. If the media type is unknown, the content determines which of the
/// two it is.
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
    /// Returns the descriptor of the part.
    pub fn parse(self) -> std::result::Result<Descriptor, DigestError> {
        Ok(Descriptor { digest: self.digest.parse()?, media_type: self.media_type, size: self.size })
    }
}
