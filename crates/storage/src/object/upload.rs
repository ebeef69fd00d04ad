//! Blob uploads to a bucket: a small blob as one object, a larger one as a multipart upload with concurrent parts,
//! which resumes after the parts that are stored.

use bytes::Bytes;
use domain::Descriptor;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use object_store::{ObjectStoreExt as _, PutPayload, multipart::PartId, path::Path};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{ObjectStore, failed};
use crate::{Chunk, Error, Provider, Result, Stage};

/// Minimum size of a part, in bytes. A blob up to this size is written as one object.
const PART: u64 = 8 << 20;
/// Maximum number of parts that every provider accepts.
const MOST_PARTS: u64 = 9_000;
/// Number of concurrent part uploads per blob. It also limits the number of parts that an upload holds in memory.
const PARTS_AT_ONCE: usize = 3;

/// Maximum length of the id of an upload or of a part, in bytes.
const MAX_ID: usize = 1_024;

/// A multipart upload, as recorded in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upload {
    path: String,
    id: String,
    part: u64,
    /// The service's ids of the stored parts, from the first on without a gap.
    parts: Vec<String>,
    /// Whether all parts were sent. The object may then exist without having been verified.
    completed: bool,
}

impl Upload {
    pub fn parse(session: &str) -> Option<Self> {
        serde_json::from_str(session).ok()
    }

    fn session(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::malformed("an upload", error))
    }

    /// Returns how many bytes are stored.
    pub fn there(&self) -> u64 {
        self.part * self.parts.len() as u64
    }

    pub fn is_of(&self, path: &Path) -> bool {
        self.path == path.as_ref()
    }

    pub fn is_completed(&self) -> bool {
        self.completed
    }
}

/// The part uploads in progress, in the order of the parts.
type Sending = FuturesOrdered<BoxFuture<'static, object_store::Result<PartId>>>;

impl ObjectStore {
    /// Writes a blob whose first `from` bytes are already stored.
    pub(super) async fn upload(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()> {
        let path = self.blob(&stage.name, blob.digest);
        let mut pieces = Pieces { chunks, rest: Bytes::new() };
        if blob.size <= PART {
            let (payload, _) = pieces.take(blob.size).await?;
            pieces.end().await?;
            self.put(&path, payload).await?;
            return self.verify_unless_signed(stage, blob, false).await;
        }
        let result = self.upload_parts(stage, blob, from, &path, pieces).await;
        if let Err(Error::UploadGone(_) | Error::WrittenWrong { .. }) = &result {
            stage.journal.forget(blob.digest).await?;
        }
        result
    }

    async fn upload_parts(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        path: &Path,
        mut pieces: Pieces,
    ) -> Result<()> {
        let journal = &stage.journal;
        let mut upload = if from > 0 {
            let known = journal.upload(blob.digest).await?.and_then(|session| Upload::parse(&session));
            let known = known.filter(|upload| upload.is_of(path) && upload.there() == from);
            known.ok_or_else(|| Error::UploadGone(path.to_string().into()))?
        } else {
            let id = self.bucket.create_multipart(path).await.map_err(|error| failed(path.as_ref(), &error))?;
            let id = bounded(path, id)?;
            let part = PART.max(blob.size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20));
            let upload = Upload { path: path.to_string(), id, part, parts: Vec::new(), completed: false };
            journal.note(blob.digest, &upload.session()?).await?;
            upload
        };
        let mut sending = Sending::new();
        let mut offset = from;
        let mut number = upload.parts.len();
        while offset < blob.size || !sending.is_empty() {
            let full = sending.len() >= PARTS_AT_ONCE || offset >= blob.size;
            // Gathers the next part from the source while other parts are sent.
            let taken = async {
                if full { std::future::pending().await } else { pieces.take(upload.part.min(blob.size - offset)).await }
            };
            tokio::select! {
                biased;
                Some(part) = sending.next(), if full => {
                    let part = part.map_err(|error| gone_or(failed(path.as_ref(), &error), path))?;
                    upload.parts.push(bounded(path, part.content_id)?);
                    if upload.there() < blob.size {
                        journal.note(blob.digest, &upload.session()?).await?;
                    }
                }
                payload = taken => {
                    let (payload, length) = payload?;
                    let (bucket, path, id) = (self.bucket.clone(), path.clone(), upload.id.clone());
                    let part = async move { bucket.put_part(&path, &id, number, payload).await };
                    // Runs on a separate task, so that the upload progresses while the next part is gathered.
                    let task = tokio::spawn(part).map(|sent| {
                        sent.unwrap_or_else(|error| Err(object_store::Error::JoinError { source: error }))
                    });
                    sending.push_back(task.boxed());
                    number += 1;
                    offset += length;
                }
            }
        }
        pieces.end().await?;
        upload.completed = true;
        journal.note(blob.digest, &upload.session()?).await?;
        let parts = upload.parts.iter().map(|id| PartId { content_id: id.clone() }).collect();
        let completed = self.bucket.complete_multipart(path, &upload.id, parts).await;
        completed.map_err(|error| gone_or(failed(path.as_ref(), &error), path))?;
        self.verify_unless_signed(stage, blob, from > 0).await?;
        journal.forget(blob.digest).await
    }

    /// Verifies a written object by reading it again, unless the provider has verified it. S3 checks the signed SHA-256
    /// of each request, and the source's bytes were verified while they were read. A resumed upload is verified,
    /// because another process sent its beginning.
    async fn verify_unless_signed(&self, stage: &Stage, blob: &Descriptor, resumed: bool) -> Result<()> {
        if self.location.provider == Provider::S3 && !resumed && !stage.suspect {
            return Ok(());
        }
        if self.is_intact(stage, blob).await? {
            return Ok(());
        }
        let path = self.blob(&stage.name, blob.digest);
        self.bucket.delete(&path).await.map_err(|error| failed(path.as_ref(), &error))?;
        Err(Error::WrittenWrong { what: path.to_string().into(), digest: blob.digest })
    }

    /// Aborts a multipart upload. Succeeds if the upload no longer exists.
    pub(super) async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        let path = Path::from(upload.path.as_str());
        match self.bucket.abort_multipart(&path, &upload.id).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(path.as_ref(), &error)),
        }
    }

    pub(super) async fn put(&self, path: &Path, payload: PutPayload) -> Result<()> {
        self.bucket.put(path, payload).await.map(drop).map_err(|error| failed(path.as_ref(), &error))
    }
}

/// Rejects an id of an upload or of a part that is too long for the journal.
fn bounded(path: &Path, id: String) -> Result<String> {
    if id.len() <= MAX_ID {
        Ok(id)
    } else {
        Err(Error::malformed(path.as_ref(), format!("an id in it has {} bytes, the most is {MAX_ID}", id.len())))
    }
}

/// Maps "not found" to `UploadGone`: the service lost the upload, and the copy starts it again.
fn gone_or(error: Error, path: &Path) -> Error {
    match &error {
        Error::Status { status, .. } if *status == http::StatusCode::NOT_FOUND => {
            Error::UploadGone(path.to_string().into())
        }
        _ => error,
    }
}

/// The pieces of a blob, in the order in which they arrive.
struct Pieces {
    chunks: mpsc::Receiver<Chunk>,
    rest: Bytes,
}

impl Pieces {
    /// Waits for the next `bytes` bytes.
    async fn take(&mut self, bytes: u64) -> Result<(PutPayload, u64)> {
        let mut gathered = Vec::new();
        let mut missing = bytes;
        while missing > 0 {
            if self.rest.is_empty() {
                match self.chunks.recv().await {
                    Some(Chunk::Data(bytes)) => self.rest = bytes,
                    Some(Chunk::End) | None => return Err(Error::Interrupted),
                }
            }
            let length = usize::try_from(missing).unwrap_or(usize::MAX).min(self.rest.len());
            gathered.push(self.rest.split_to(length));
            missing -= length as u64;
        }
        Ok((gathered.into_iter().collect(), bytes))
    }

    async fn end(&mut self) -> Result<()> {
        match self.chunks.recv().await {
            Some(Chunk::End) if self.rest.is_empty() => Ok(()),
            _ => Err(Error::Interrupted),
        }
    }
}
