//! Presents a disk file as an image: an OCI artifact of one layer (image specification 1.1, "Guidelines for Artifact
//! Usage").

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Descriptor, ImageName};
use serde_json::json;
use tokio::sync::mpsc;

use super::{BlobChunks, Error, MANIFEST_TYPE, Result, Source, file_range};

/// The type of the artifact (image specification 1.1, "Guidelines for Artifact Usage").
const ARTIFACT_TYPE: &str = "application/vnd.appferry.disk.v1";
const LAYER_TYPE: &str = "application/octet-stream";
/// The empty descriptor (image specification 1.1, "Guidance for an Empty Descriptor").
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";

/// A disk file as an image of one layer.
#[derive(Debug, Clone)]
pub struct DiskFile {
    path: PathBuf,
    layer: Descriptor,
    manifest: Bytes,
}

impl DiskFile {
    /// Opens a file or a block device and reads it once to compute its digest. Fails for files that can be read only
    /// once.
    pub async fn open(path: &Path) -> Result<Self> {
        let owned = path.to_owned();
        let hash = move || {
            file_range::require_rereadable(&owned)?;
            file_range::hash(&owned, 0, u64::MAX)
        };
        let (digest, size) = tokio::task::spawn_blocking(hash).await.map_err(|_| Error::Interrupted)??;
        let layer = Descriptor { media_type: LAYER_TYPE.to_owned(), digest, size };
        let title = path.file_name().unwrap_or_default().to_string_lossy();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": { "mediaType": EMPTY_TYPE, "digest": empty().digest.to_string(), "size": EMPTY.len() },
            "layers": [{
                "mediaType": LAYER_TYPE,
                "digest": digest.to_string(),
                "size": size,
                "annotations": { "org.opencontainers.image.title": title },
            }],
        });
        Ok(Self { path: path.to_owned(), layer, manifest: manifest.to_string().into() })
    }

    fn manifest(&self) -> Descriptor {
        Descriptor::of_content(MANIFEST_TYPE, &self.manifest)
    }
}

fn empty() -> Descriptor {
    Descriptor::of_content(EMPTY_TYPE, EMPTY)
}

#[async_trait]
impl Source for DiskFile {
    async fn root(&self, _: &ImageName) -> Result<Option<Descriptor>> {
        Ok(Some(self.manifest()))
    }

    async fn read_manifest(&self, _: &ImageName, _: &Descriptor) -> Result<Bytes> {
        Ok(self.manifest.clone())
    }

    async fn read_blob(&self, _: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        let most = most.unwrap_or(u64::MAX);
        if blob.digest == self.layer.digest {
            return Ok(file_range::read(&self.path, from, most));
        }
        let (sender, chunks) = mpsc::channel(1);
        // The channel has room for the one chunk.
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(EMPTY.len());
        let _ = sender.try_send(Ok(Bytes::from_static(&EMPTY[from..])));
        Ok(chunks)
    }
}
