//! Uploads of blobs to a registry (OCI distribution specification 1.1, "Pushing blobs"), in a mode that the registry
//! accepts. Rejected modes are remembered for later blobs and across restarts.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{Descriptor, Digest, ForeignText, with_causes};
use http::{StatusCode, header::LOCATION};
use reqwest::Response;
use tokio::sync::mpsc;

use super::{
    RegistryStore,
    body_stream::{BodyStream, pipe},
    client::{Ask, REDIRECTS, Scope, leads_on, what},
    upload_mode::{Habits, Lesson, UploadMode},
    upload_part::Part,
    upload_session::{Redirect, Upload, end_of_range},
};
use crate::{CHUNK_BYTES, Chunk, Error, Result, Stage, http_response::refusal, location::authority};

/// Timeout of the response to the last bytes of a blob: the registry hashes the whole blob and may move it.
const COMMIT: Duration = Duration::from_secs(600);
/// Maximum size in bytes of a blob that is held in memory as a whole, so that its request can follow a redirect at
/// once. A redirect of a larger blob requires reading it again.
const AT_HAND: u64 = CHUNK_BYTES as u64;

/// A failed upload. `lesson` has the conclusion about the upload mode, and the number of bytes of the rejected request.
struct Failed {
    error: Error,
    lesson: Option<(Lesson, u64)>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, lesson: None }
    }
}

type Sent<T> = std::result::Result<T, Failed>;

impl RegistryStore {
    /// Loads the stored habits of the registry, once per process. If the database does not respond, uploads learn the
    /// habits again.
    pub(super) async fn recall(&self, stage: &Stage) {
        let recall = self.recalled.get_or_try_init(async || {
            let known = stage.journal.registry_habits(&self.service()).await?;
            self.learned.load(known.as_deref().map(Habits::parse).unwrap_or_default());
            Ok::<(), Error>(())
        });
        if let Err(error) = recall.await {
            tracing::warn!(error = with_causes(&error), "failed to read the upload habits of the registry; will retry");
        }
    }

    /// Uploads a blob, starting at the byte offset `from`. The registry already has the bytes before this offset.
    pub(super) async fn upload(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()> {
        self.recall(stage).await;
        let mode = self.learned.mode(blob.size);
        let mut stream = BodyStream::new(chunks);
        let sent = if from > 0 {
            self.resume(stage, blob, mode, from, &mut stream).await
        } else {
            self.send_blob(stage, repository, blob, mode, &mut stream).await
        };
        match sent {
            Ok(()) => {
                if let Some(habits) = self.learned.succeeded(blob.size, mode) {
                    self.remember(stage, &habits).await;
                }
                self.try_self_mount(repository, blob).await;
                Ok(())
            }
            Err(failed) => Err(self.take_lesson(stage, repository, blob, mode, failed).await?),
        }
    }

    async fn remember(&self, stage: &Stage, habits: &str) {
        let service = self.service();
        tracing::info!(registry = service, habits, "learned the upload habits of the registry; saving them");
        if let Err(error) = stage.journal.note_registry_habits(&service, habits).await {
            tracing::warn!(
                error = with_causes(&error),
                "failed to save the upload habits of the registry; a restart learns them again"
            );
        }
    }

    /// Prepares the next attempt after a failed upload: chooses another mode if the mode may be the reason. Returns the
    /// error of the upload.
    async fn take_lesson(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
        mode: UploadMode,
        failed: Failed,
    ) -> Result<Error> {
        let Failed { error, lesson } = failed;
        let error = match error.about_digest(blob.digest) {
            unsupported @ Error::DigestUnsupported { .. }
                if !self.supports(repository, blob.digest.algorithm()).await =>
            {
                self.discard(stage, blob).await?;
                return Ok(unsupported);
            }
            Error::DigestUnsupported { source, .. } => *source,
            error => error,
        };
        let Some((lesson, sent)) = lesson else { return Ok(error) };
        let error = if lesson == Lesson::Broken { gone_or(error) } else { error };
        // An upload with smaller chunks resumes at the same offset.
        if lesson != Lesson::TooLarge {
            self.discard(stage, blob).await?;
        }
        if !self.learned.learn(blob.size, mode, lesson, sent) {
            return Ok(error);
        }
        tracing::info!(
            %error, ?mode, next = ?self.learned.mode(blob.size),
            "the registry rejected the upload mode; retrying in another mode"
        );
        Ok(Error::UploadMode(error.to_string().into()))
    }

    async fn send_blob(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
        mode: UploadMode,
        stream: &mut BodyStream,
    ) -> Sent<()> {
        if let Some(upload) = self.begun_elsewhere(stage, repository, blob).await? {
            self.send_all(stage, upload, blob, mode, stream).await?;
            return Ok(stage.journal.forget(blob.digest).await?);
        }
        let (upload, begun) = match stage.waiting.take(blob.digest) {
            Some(waiting) => waiting,
            None => self.begin(repository, blob.digest.algorithm(), Some(Arc::clone(&stage.journal))).await?,
        };
        if let UploadMode::Chunked(_) = upload.fit(mode, blob.size) {
            stage.journal.note(blob.digest, &upload.session()?).await?;
            begun.ended();
            return self.send_all(stage, upload, blob, mode, stream).await;
        }
        let sent = self.send_all(stage, upload, blob, mode, stream).await;
        // The journal records the upload of a redirected request.
        if matches!(&sent, Ok(()) | Err(Failed { error: Error::Redirected { .. }, .. })) {
            begun.ended();
        }
        sent
    }

    /// Sends a blob from its beginning, in a mode that the upload allows.
    async fn send_all(
        &self,
        stage: &Stage,
        upload: Upload,
        blob: &Descriptor,
        mode: UploadMode,
        stream: &mut BodyStream,
    ) -> Sent<()> {
        match upload.fit(mode, blob.size) {
            UploadMode::Monolithic if blob.size <= AT_HAND => self.send_at_hand(&upload, blob, stream).await,
            UploadMode::Monolithic => self.commit(stage, &upload, blob, 0, stream).await,
            UploadMode::Streamed => {
                let part = Part::of_stream(&upload, blob.size);
                let upload = self.append(stage, upload, blob, &part, stream).await?;
                self.commit(stage, &upload, blob, blob.size, stream).await
            }
            UploadMode::Chunked(chunk) => self.send_chunks(stage, upload, blob, chunk, stream).await,
        }
    }

    /// Resumes the upload that the journal records. The registry already has the first `from` bytes of the blob.
    async fn resume(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        mode: UploadMode,
        from: u64,
        stream: &mut BodyStream,
    ) -> Sent<()> {
        let known = stage.journal.upload(blob.digest).await?.and_then(|session| self.session(&session));
        let gone = || Error::UploadGone(format!("the blob {}", blob.digest).into());
        let mut upload = known.ok_or_else(gone)?;
        upload.taken = from;
        // The registry may have turned out to accept no chunks since the upload started.
        let UploadMode::Chunked(chunk) = upload.fit(mode, blob.size) else { return Err(gone().into()) };
        self.send_chunks(stage, upload, blob, chunk, stream).await
    }

    async fn send_chunks(
        &self,
        stage: &Stage,
        mut upload: Upload,
        blob: &Descriptor,
        chunk: u64,
        stream: &mut BodyStream,
    ) -> Sent<()> {
        while blob.size - upload.taken > chunk {
            let part = Part::of_chunk(&upload, chunk);
            let appended = self.append(stage, upload.clone(), blob, &part, stream).await;
            upload = match appended {
                Err(failed) => return Err(self.out_of_place(stage, &upload, blob, failed).await?),
                Ok(upload) => upload,
            };
            stage.journal.note(blob.digest, &upload.session()?).await?;
        }
        if let Err(failed) = self.commit(stage, &upload, blob, upload.taken, stream).await {
            return Err(self.out_of_place(stage, &upload, blob, failed).await?);
        }
        stage.journal.forget(blob.digest).await?;
        Ok(())
    }

    /// Sends a part of the blob, and returns the upload with its next URL. A wrong offset in the response is not an
    /// error, because the digest is verified at the end.
    async fn append(
        &self,
        stage: &Stage,
        mut upload: Upload,
        blob: &Descriptor,
        part: &Part,
        stream: &mut BodyStream,
    ) -> Sent<Upload> {
        let what = what(&part.method, &part.url);
        let response = self.send(stage, &upload, blob, part, stream).await?;
        if !response.status().is_success() {
            return Err(refused(&what, part, response).await);
        }
        upload.taken = part.offset + part.bytes;
        upload.redirect = None;
        if end_of_range(response.headers()).is_some_and(|there| there != upload.taken) {
            self.learned.misreports_offsets();
        }
        // Some registries send `Location` only when the upload starts.
        if response.headers().contains_key(LOCATION) {
            upload.url = self.client().target(&what, &part.url, response.headers())?;
        }
        Ok(upload)
    }

    /// Sends the remaining bytes, and makes the registry verify the whole blob.
    async fn commit(
        &self,
        stage: &Stage,
        upload: &Upload,
        blob: &Descriptor,
        offset: u64,
        stream: &mut BodyStream,
    ) -> Sent<()> {
        let part = Part::of_rest(upload, blob, offset);
        if part.bytes > 0 {
            let response = self.send(stage, upload, blob, &part, stream).await?;
            return committed(blob, &part, response).await;
        }
        stream.end().await?;
        self.put_at_hand(upload, blob, &part, Bytes::new()).await
    }

    /// Sends a small blob as a whole, in a request that can be repeated.
    async fn send_at_hand(&self, upload: &Upload, blob: &Descriptor, stream: &mut BodyStream) -> Sent<()> {
        let body = stream.gather(blob.size).await?;
        self.put_at_hand(upload, blob, &Part::of_rest(upload, blob, 0), body).await
    }

    async fn put_at_hand(&self, upload: &Upload, blob: &Descriptor, part: &Part, body: Bytes) -> Sent<()> {
        let (url, scope) = (part.url.clone(), Scope::push(&upload.repository));
        let ask = Ask { method: part.method.clone(), url, scope, headers: part.headers()?, body };
        committed(blob, part, self.client().ask_once_within(&ask, COMMIT).await?).await
    }

    /// Sends a part while its bytes are read. Records the target of a redirect in the journal, because the bytes have
    /// been consumed and the upload has to start again.
    async fn send(
        &self,
        stage: &Stage,
        upload: &Upload,
        blob: &Descriptor,
        part: &Part,
        stream: &mut BodyStream,
    ) -> Result<Response> {
        let response = self.send_once(&upload.repository, part, stream).await?;
        if !leads_on(&part.method, response.status()) {
            return Ok(response);
        }
        let what = what(&part.method, &part.url);
        let url = self.client().target(&what, &part.url, response.headers())?;
        let count = upload.redirect_of(part.offset, part.last).map_or(0, |redirect| redirect.count) + 1;
        if count > REDIRECTS {
            return Err(Error::malformed(what, "it is redirected too often"));
        }
        let to = ForeignText::value(format_args!("{}://{}", url.scheme(), authority(&url)));
        let redirect = Some(Redirect { offset: part.offset, last: part.last, url, count });
        let upload = Upload { taken: part.offset, redirect, ..upload.clone() };
        stage.journal.note(blob.digest, &upload.session()?).await?;
        Err(Error::Redirected { what: what.into(), to })
    }

    async fn send_once(&self, repository: &str, part: &Part, stream: &mut BodyStream) -> Result<Response> {
        let (pipe, body) = pipe();
        let scope = Scope::push(repository);
        let request = self.client().stream(part.method.clone(), &part.url, &scope, part.headers()?, body, COMMIT);
        let fill = stream.fill(pipe, part.bytes, part.last);
        tokio::pin!(request, fill);
        tokio::select! {
            biased;
            filled = &mut fill => {
                // An error of the stream is the cause, whatever the result of the request.
                filled?;
                request.await
            }
            // A rejection may arrive before all bytes are sent, and ends the wait.
            answered = &mut request => {
                if answered.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                    fill.await?;
                }
                answered
            }
        }
    }

    /// Handles status 416, with which a registry reports that it is at another offset: queries the offset, and records
    /// it in the journal. If the registry reports the expected offset, the upload can't be resumed.
    async fn out_of_place(&self, stage: &Stage, upload: &Upload, blob: &Descriptor, failed: Failed) -> Result<Failed> {
        let Error::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, what, .. } = &failed.error else {
            return Ok(failed);
        };
        if failed.lesson.is_some() {
            return Ok(failed);
        }
        if let Some((now, there)) = self.progress(upload, blob).await?
            && there != upload.taken
        {
            stage.journal.note(blob.digest, &now.session()?).await?;
            return Ok(failed);
        }
        let lesson = Some((Lesson::Broken, blob.size - upload.taken));
        Ok(Failed { error: Error::UploadGone(what.clone()), lesson })
    }
}

/// Checks that the registry has verified the whole blob. The specified status is 201; some registries send 200, 202 or
/// 204.
async fn committed(blob: &Descriptor, part: &Part, response: Response) -> Sent<()> {
    let what = what(&part.method, &part.url);
    if !response.status().is_success() {
        return Err(refused(&what, part, response).await);
    }
    let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    match digest.map(str::parse::<Digest>) {
        None | Some(Err(_)) => Ok(()),
        // Digests of different algorithms can't be compared.
        Some(Ok(digest)) if digest == blob.digest || digest.algorithm() != blob.digest.algorithm() => Ok(()),
        Some(Ok(actual)) => {
            Err(Error::DigestMismatch { image: what, expected: blob.digest, actual: Box::new(actual) }.into())
        }
    }
}

async fn refused(what: &str, part: &Part, response: Response) -> Failed {
    let lesson = Lesson::of(&part.method, part.offset, response.status()).map(|lesson| (lesson, part.bytes));
    Failed { error: refusal(what, response).await, lesson }
}

/// Converts a client error (4xx) of a commit or a chunk to [`Error::UploadGone`], which restarts the upload. The
/// registry either has lost the upload or computed another digest, although the bytes were correct when they were sent.
fn gone_or(error: Error) -> Error {
    match error {
        Error::Status { ref what, status, .. } if status.is_client_error() => {
            tracing::info!(%error, "the registry lost or rejected an upload; restarting it");
            Error::UploadGone(what.clone())
        }
        error => error,
    }
}
