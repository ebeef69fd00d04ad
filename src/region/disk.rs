//! A disk file, read as if it were an image: an OCI artifact of one layer (image specification 1.1, "Guidelines for Artifact
//! Usage").

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{BlobChunks, CHUNK_BYTES, Error, MANIFEST_TYPE, Result, Source};
use crate::domain::{Descriptor, Digest, ImageName};

/// What the artifact says it is.
const ARTIFACT_TYPE: &str = "application/vnd.appferry.disk.v1";
const LAYER_TYPE: &str = "application/octet-stream";
/// The empty descriptor (image specification 1.1, "Guidance for an Empty Descriptor").
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";

/// A disk file, read as an image of one layer.
#[derive(Debug, Clone)]
pub struct DiskFile {
    path: PathBuf,
    layer: Descriptor,
    manifest: Bytes,
}

impl DiskFile {
    /// Opens a file and reads it once, to know its digest.
    pub async fn open(path: &Path) -> Result<Self> {
        let owned = path.to_owned();
        let hashed = tokio::task::spawn_blocking(move || hash(&owned)).await.map_err(|_| Error::Interrupted)?;
        let (digest, size) = hashed.map_err(Error::io("reading", path.display().to_string()))?;
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
        describe(MANIFEST_TYPE, &self.manifest)
    }
}

fn describe(media_type: &str, content: &[u8]) -> Descriptor {
    let digest = Digest::new(Sha256::digest(content).into());
    Descriptor { media_type: media_type.to_owned(), digest, size: content.len() as u64 }
}

fn empty() -> Descriptor {
    describe(EMPTY_TYPE, EMPTY)
}

fn hash(path: &Path) -> std::io::Result<(Digest, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok((Digest::new(hasher.finalize().into()), size));
        }
        size += length as u64;
        hasher.update(&buffer[..length]);
    }
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
        let (sender, chunks) = mpsc::channel(2);
        if blob.digest == self.layer.digest {
            let path = self.path.clone();
            // Ends with the file, or when nobody receives any more.
            tokio::task::spawn_blocking(move || read(&path, from, most.unwrap_or(u64::MAX), &sender));
        } else {
            // It fits into the channel.
            let from = usize::try_from(from).unwrap_or(usize::MAX).min(EMPTY.len());
            let _ = sender.try_send(Ok(Bytes::from_static(&EMPTY[from..])));
        }
        Ok(chunks)
    }
}

fn read(path: &Path, from: u64, most: u64, chunks: &mpsc::Sender<Result<Bytes>>) {
    let read_all = || -> std::io::Result<()> {
        let mut file = std::fs::File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut file = file.take(most);
        loop {
            let mut buffer = BytesMut::zeroed(CHUNK_BYTES);
            let length = file.read(&mut buffer)?;
            buffer.truncate(length);
            if length == 0 || chunks.blocking_send(Ok(buffer.freeze())).is_err() {
                return Ok(());
            }
        }
    };
    if let Err(error) = read_all() {
        // Nobody may be listening any more.
        let _ = chunks.blocking_send(Err(Error::io("reading", path.display().to_string())(error)));
    }
}
