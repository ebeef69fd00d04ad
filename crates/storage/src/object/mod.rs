//! Store in a bucket of OCI image layouts: one layout per image at `<prefix>/<image>/`, as in a directory. Writes are
//! atomic, because an object appears only when it is complete.

mod conceal;
mod credentials;
mod existing;
mod open;
mod refusal;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Descriptor, Digest, ForeignText, Image, ImageName, NameContent, Verification, VerifyExisting};
use futures_util::StreamExt as _;
use object_store::{
    GetOptions, GetRange, ObjectStore as Objects, ObjectStoreExt as _, multipart::MultipartStore, path::Path,
};
use tokio::{sync::mpsc, time::Instant};

pub use credentials::{AccessKeys, ProfileError, S3Profile};
pub use open::{Access, open};
pub use refusal::Refused;

use self::{conceal::Concealment, upload::Upload};
use super::{
    BlobChunks, Chunk, Error, ImageSpec, Located, MAX_MANIFEST_BYTES, ManifestGraph, Neighbors, ObjectLocation, Place,
    Presence, Result, Source, Stage, Store, StoreKind,
    layout::{self, INDEX, Index, Layout, MARKER, MARKER_CONTENT},
    store::shown,
};

/// Number of pieces of a blob that may be read ahead of the receiver.
const READ_AHEAD: usize = 8;
/// Maximum size of an object that every provider copies server-side in one request, in bytes.
const MOST_COPIED: u64 = 5 << 30;

/// Combines the library's traits for objects and for multipart uploads.
trait Bucket: Objects + MultipartStore {}

impl<T: Objects + MultipartStore> Bucket for T {}

/// A store under a prefix of a bucket.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    location: Arc<ObjectLocation>,
    endpoint: Option<String>,
    bucket: Arc<dyn Bucket>,
    /// Whether the bucket responds 403 for missing objects.
    concealment: Arc<Concealment>,
    /// How to verify blobs that the bucket already has.
    verify_existing: VerifyExisting,
}

/// Converts an error of the library into the kind of error that the other stores report.
fn failed(what: &str, error: &object_store::Error) -> Error {
    use object_store::Error as Cause;
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        if let Some(refused) = next.downcast_ref::<Refused>() {
            return Error::Refused { what: what.into(), source: Box::new(refused.clone()) };
        }
        if let Some(forbidden) = next.downcast_ref::<super::ssrf_guard::Forbidden>() {
            return Error::Forbidden { what: what.into(), source: forbidden.clone() };
        }
        if let Some(error) = next.downcast_ref::<ProfileError>() {
            return super::CredentialsError::from(error.clone()).into();
        }
        if let Some(error) = next.downcast_ref::<super::SecretFileError>() {
            return super::CredentialsError::from(error.clone()).into();
        }
        cause = next;
    }
    match error {
        Cause::NotFound { .. } => {
            let (status, detail) = (http::StatusCode::NOT_FOUND, ForeignText::default());
            Error::Status { what: what.into(), status, detail, retry_after: None }
        }
        Cause::NotSupported { source } => Error::malformed(what, source),
        Cause::InvalidPath { source } => Error::malformed(what, source),
        Cause::NotImplemented { operation, .. } => Error::malformed(what, operation),
        _ => Error::Transport { what: what.into(), problem: ForeignText::new(cause) },
    }
}

impl ObjectStore {
    fn new(location: ObjectLocation, endpoint: Option<String>, bucket: Arc<dyn Bucket>) -> Self {
        let (location, concealment) = (Arc::new(location), Arc::default());
        Self { location, endpoint, bucket, concealment, verify_existing: VerifyExisting::default() }
    }

    /// Returns the same store with this policy for verifying blobs that it already has.
    #[must_use]
    pub fn verifying_existing(self, verify_existing: VerifyExisting) -> Self {
        Self { verify_existing, ..self }
    }

    fn path(&self, name: &ImageName, file: &str) -> Path {
        let ImageName(name) = name;
        match self.location.prefix.as_str() {
            "" => Path::from(format!("{name}/{file}")),
            prefix => Path::from(format!("{prefix}/{name}/{file}")),
        }
    }

    fn blob(&self, name: &ImageName, digest: Digest) -> Path {
        self.path(name, &layout::blob_path(digest))
    }

    /// Reads a small object, of at most `limit` bytes. Returns `None` if there is none.
    async fn small(&self, path: &Path, limit: u64) -> Result<Option<Bytes>> {
        let got = match self.bucket.get(path).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            got => got.map_err(|error| failed(path.as_ref(), &error))?,
        };
        let too_large = |bytes| Error::malformed(path.as_ref(), format!("it has {bytes} bytes, the most is {limit}"));
        if got.meta.size > limit {
            return Err(too_large(got.meta.size));
        }
        let mut content = Vec::new();
        let mut pieces = got.into_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| failed(path.as_ref(), &error))?;
            let bytes = (content.len() + piece.len()) as u64;
            if bytes > limit {
                return Err(too_large(bytes));
            }
            content.extend_from_slice(&piece);
        }
        Ok(Some(content.into()))
    }

    /// Reads a small object of a destination store. Returns `None` if there is none, or if the bucket conceals missing
    /// objects.
    async fn small_written(&self, path: &Path, limit: u64) -> Result<Option<Bytes>> {
        match self.small(path, limit).await {
            Err(error) if self.conceals(&error).await? => Ok(None),
            outcome => outcome,
        }
    }

    async fn index(&self, name: &ImageName) -> Result<Option<Index>> {
        let path = self.path(name, INDEX);
        self.small(&path, MAX_MANIFEST_BYTES).await?.map(|content| Index::parse(path.as_ref(), &content)).transpose()
    }

    /// Returns the size of an object, or `None` if there is none.
    async fn size(&self, path: &Path) -> Result<Option<u64>> {
        match self.bucket.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(path.as_ref(), &error)),
        }
    }

    fn service(&self) -> String {
        let ObjectLocation { provider, bucket, .. } = &*self.location;
        format!("{}://{}/{bucket}", provider.scheme(), self.endpoint.as_deref().unwrap_or_default())
    }
}

#[async_trait]
impl Source for ObjectStore {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        self.index(name).await?.map(|index| index.root(None)).transpose()
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        let missing = || Error::BlobMissing { digest: manifest.digest, image: name.to_string() };
        let limit = manifest.size.min(MAX_MANIFEST_BYTES);
        let content = self.small(&self.blob(name, manifest.digest), limit).await?.ok_or_else(missing)?;
        let actual = manifest.digest.algorithm().digest(&content);
        if actual == manifest.digest {
            Ok(content)
        } else {
            Err(Error::DigestMismatch { image: name.to_string(), expected: manifest.digest, actual: Box::new(actual) })
        }
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        let path = self.blob(name, blob.digest);
        let end = most.map_or(blob.size, |most| blob.size.min(from.saturating_add(most)));
        let (chunks, received) = mpsc::channel(READ_AHEAD);
        let range = (from < end && (from > 0 || end < blob.size)).then_some(GetRange::Bounded(from..end));
        let got = match self.bucket.get_opts(&path, GetOptions { range, ..GetOptions::default() }).await {
            Err(object_store::Error::NotFound { .. }) => {
                return Err(Error::BlobMissing { digest: blob.digest, image: name.to_string() });
            }
            got => got.map_err(|error| failed(path.as_ref(), &error))?,
        };
        if got.meta.size != blob.size {
            let (image, actual) = (name.to_string(), got.meta.size);
            return Err(Error::SizeMismatch { image, digest: blob.digest, expected: blob.size, actual });
        }
        let mut stream = got.into_stream();
        // The task below ends with the object, or when the receiver is dropped.
        let digest = blob.digest;
        let (image, mut room) = (name.to_string(), end.saturating_sub(from));
        let expected = room;
        tokio::spawn(async move {
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(|error| failed(path.as_ref(), &error)).and_then(|piece| {
                    let more = piece.len() as u64;
                    let actual = (expected - room).saturating_add(more);
                    room = room.checked_sub(more).ok_or_else(|| Error::SizeMismatch {
                        image: image.clone(),
                        digest,
                        expected,
                        actual,
                    })?;
                    Ok(piece)
                });
                let broken = piece.is_err();
                if chunks.send(piece).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(received)
    }

    async fn root_of(&self, name: &ImageName, digest: Digest) -> Result<Option<Descriptor>> {
        Ok(self.index(name).await?.map(|index| index.listed(digest)).transpose()?.flatten())
    }

    async fn neighbors(&self, name: &ImageName, _since: Instant) -> Result<Neighbors> {
        match self.index(name).await? {
            Some(index) => layout::neighbors(self, name, index).await,
            None => Ok(Neighbors::default()),
        }
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn reads_ranges(&self) -> bool {
        true
    }
}

#[async_trait]
impl Store for ObjectStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Object
    }

    fn locate(&self, spec: &ImageSpec) -> std::result::Result<Located, String> {
        layout::locate(spec)
    }

    fn name_of(&self, image: &Image) -> ImageName {
        ImageName(image.id.to_string())
    }

    fn url(&self, name: &ImageName) -> String {
        format!("oci:{name}")
    }

    fn place(&self, name: &ImageName) -> Option<Place> {
        Some(Place { service: self.service(), path: self.path(name, "").to_string() })
    }

    /// Writes an object that belongs to no image, reads its metadata, and deletes it.
    async fn probe(&self) -> Result<Option<u64>> {
        let path = self.path(&ImageName(".appferry-probe".to_owned()), &uuid::Uuid::now_v7().simple().to_string());
        self.put(&path, Bytes::from_static(b"appferry").into()).await?;
        let there = self.size(&path).await;
        self.bucket.delete(&path).await.map_err(|error| failed(path.as_ref(), &error))?;
        if there?.is_some() { Ok(None) } else { Err(Error::ImageMissing(path.to_string().into())) }
    }

    async fn prepare(&self, _stage: &Stage) -> Result<()> {
        Ok(())
    }

    /// Reads only the index. It is written last, so an index that this service wrote implies that everything below it
    /// is stored.
    async fn is_complete(&self, stage: &Stage, graph: &ManifestGraph) -> Result<Option<Verification>> {
        let Some((root, _)) = graph.manifests.last() else { return Ok(None) };
        let path = self.path(&stage.name, INDEX);
        let content = self.small_written(&path, MAX_MANIFEST_BYTES).await?;
        let read = |content: &Bytes| Index::parse(path.as_ref(), content)?.root(None);
        let there = shown(content.as_ref().map(read).transpose())?;
        stage.may_show(path.as_ref(), root.digest, &there)?;
        if stage.suspect || there != NameContent::Root(root.digest) {
            return Ok(None);
        }
        let same = content.is_some_and(|there| Layout::of(root, graph).is_ok_and(|layout| there == layout.index));
        Ok(stage.published.verification_of(root.digest, self.verify_existing).filter(|_| same))
    }

    async fn stat_blob(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
        let path = self.blob(&stage.name, blob.digest);
        let upload = stage.journal.upload(blob.digest).await?.and_then(|session| Upload::parse(&session));
        let upload = upload.filter(|upload| upload.is_of(&path));
        if let Some(witness) = self.find(&path, blob).await? {
            let unverified = upload.as_ref().is_some_and(Upload::is_completed);
            if let Some(known) = self.verify_found(stage, blob, &witness, unverified).await? {
                return Ok(Presence::Whole(known));
            }
        }
        if let Some(upload) = &upload {
            if !upload.is_completed() && (1..blob.size).contains(&upload.there()) {
                return Ok(Presence::Part(upload.there()));
            }
            self.abort_upload(upload).await?;
            stage.journal.forget(blob.digest).await?;
        }
        let copied = self.copy_from_sources(stage, blob).await?;
        Ok(copied.map_or(Presence::Absent, Presence::Whole))
    }

    /// Reads the manifest, which takes as many round trips as a check for its existence.
    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool> {
        let there = self.small_written(&self.blob(&stage.name, manifest.digest), MAX_MANIFEST_BYTES).await?;
        Ok(there.is_some_and(|there| manifest.digest.matches(&there)))
    }

    async fn write_blob(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()> {
        self.upload(stage, blob, from, chunks).await?;
        stage.journal.note_written(blob.digest).await
    }

    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()> {
        self.put(&self.blob(&stage.name, manifest.digest), content.into()).await
    }

    async fn publish(&self, stage: &Stage, graph: &ManifestGraph) -> Result<()> {
        let name = &stage.name;
        let Some((root, _)) = graph.manifests.last() else { return Err(Error::ImageMissing(name.to_string().into())) };
        let layout = Layout::of(root, graph)?;
        for (blob, content) in layout.blobs {
            self.put(&self.blob(name, blob.digest), content.into()).await?;
        }
        self.put(&self.path(name, MARKER), MARKER_CONTENT.into()).await?;
        let path = self.path(name, INDEX);
        let content = self.small_written(&path, MAX_MANIFEST_BYTES).await?;
        if content.is_none() && self.is_concealing() {
            // If the image's objects are readable, the index is missing and not merely hidden.
            self.read_manifest(name, root).await?;
        }
        let read = |content: &Bytes| Index::parse(path.as_ref(), content)?.root(None);
        stage.may_show(path.as_ref(), root.digest, &shown(content.as_ref().map(read).transpose())?)?;
        stage.journal.hold().await?;
        self.put(&path, layout.index.into()).await
    }

    async fn abort(&self, session: &str) -> Result<()> {
        match Upload::parse(session) {
            Some(upload) => self.abort_upload(&upload).await,
            None => Ok(()),
        }
    }
}
