//! Writing a blob to a registry (OCI distribution specification 1.1, "Pushing blobs"): in one request, or in chunks, so that an
//! upload that breaks off is gone on with where the registry says.

use std::{
    mem,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE},
};
use reqwest::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::Instrument as _;
use url::Url;

use super::{
    RegistryStore,
    client::{Ask, Scope, header, what},
    feed::{Feed, pipe},
};
use crate::{
    domain::{Descriptor, Digest},
    region::{Chunk, Error, Result, Stage, answer::refusal},
};

/// The largest blob that is sent in one request, and the size of the chunks of those above, in bytes. What is cut off is sent
/// again from the chunk's beginning at worst, where the registry keeps what it has.
pub const CHUNK: u64 = 64 << 20;
/// How long a registry may take to answer once it has everything: it hashes, and may move, a whole blob.
const COMMIT: Duration = Duration::from_secs(600);

/// An upload that a registry has begun, as the journal has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Upload {
    repository: String,
    url: Url,
}

impl Upload {
    fn session(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::malformed("an upload", error))
    }
}

/// An upload that no journal knows of. Dropped unfinished, it is kept to be given up: whoever carried it out may be gone.
struct Begun {
    store: RegistryStore,
    upload: Option<Upload>,
}

impl Begun {
    /// It is finished, or a journal knows of it.
    fn ended(mut self) {
        self.upload = None;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.store.dropped().extend(self.upload.take());
    }
}

impl RegistryStore {
    /// How far the upload in the journal has come, if the registry still has it.
    pub(super) async fn resumable(&self, stage: &Stage, repository: &str, blob: &Descriptor) -> Result<Option<u64>> {
        let Some(session) = stage.journal.upload(blob.digest).await? else { return Ok(None) };
        if let Some(upload) = self.session(&session).filter(|upload| upload.repository == repository) {
            if let Some((upload, there)) = self.progress(&upload, blob).await? {
                stage.journal.note(blob.digest, &upload.session()?).await?;
                return Ok(Some(there));
            }
            self.abort_upload(&upload).await?;
        }
        stage.journal.forget(blob.digest).await?;
        Ok(None)
    }

    /// What the registry says about an upload: where it goes on, and how many bytes are there. Nothing if it is of no use.
    async fn progress(&self, upload: &Upload, blob: &Descriptor) -> Result<Option<(Upload, u64)>> {
        let Upload { repository, url } = upload.clone();
        let what = what(&Method::GET, &url);
        let scope = Scope::push(&repository);
        let ask = Ask { method: Method::GET, url: url.clone(), scope, headers: HeaderMap::new(), body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        let there = end_of_range(response.headers()).filter(|there| *there < blob.size);
        let Some(there) = there.filter(|_| response.status().is_success()) else { return Ok(None) };
        // The answer may say where it goes on from now on; if not, it is where it was.
        let url = match response.headers().get(http::header::LOCATION) {
            Some(_) => self.client().target(&what, &url, response.headers())?,
            None => url,
        };
        Ok(Some((Upload { repository, url }, there)))
    }

    /// The upload that the journal has, if it is at a place that is allowed: that may have changed since.
    pub(super) fn session(&self, session: &str) -> Option<Upload> {
        let upload: Upload = serde_json::from_str(session).ok()?;
        self.client().allow("an upload", &upload.url).ok().map(|()| upload)
    }

    /// Tells the registry that an upload will not be gone on with. One that it does not have any more is as good.
    pub(super) async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        let (url, scope) = (upload.url.clone(), Scope::push(&upload.repository));
        let what = what(&Method::DELETE, &url);
        let ask = Ask { method: Method::DELETE, url, scope, headers: HeaderMap::new(), body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        match response.status() {
            // It may not know the upload, not let anybody delete one, or not know it at the place where it was cut off.
            status if status.is_success() || matches!(status.as_u16(), 400 | 404 | 405 | 416) => Ok(()),
            _ => Err(refusal(&what, response).await),
        }
    }

    /// Gives an upload up after something went wrong, which is what is told.
    async fn try_to_abort(&self, upload: &Upload) {
        if let Err(error) = self.abort_upload(upload).await {
            tracing::warn!(%error, "an upload could not be given up");
        }
    }

    /// Makes the registry take a blob from another of its repositories; false if it doesn't.
    pub(super) async fn mount(&self, repository: &str, blob: Digest, from: &str) -> Result<bool> {
        let scope = Scope::mount(repository, from);
        let mut url = self.client().url(&format!("{repository}/blobs/uploads/"))?;
        url.query_pairs_mut().append_pair("mount", &blob.to_string()).append_pair("from", from);
        let (what, begun_at) = (what(&Method::POST, &url), url.clone());
        let ask = Ask { method: Method::POST, url, scope, headers: HeaderMap::new(), body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        if response.status() == StatusCode::ACCEPTED {
            // It has begun an upload in place of that.
            if let Ok(url) = self.client().target(&what, &begun_at, response.headers()) {
                self.try_to_abort(&Upload { repository: repository.to_owned(), url }).await;
            }
        }
        Ok(response.status() == StatusCode::CREATED)
    }

    /// Begins an upload, on a task of its own: once the registry has been asked, its answer must not be lost, even if nobody waits
    /// for it any more.
    async fn begin(&self, repository: &str) -> Result<(Upload, Begun)> {
        let (store, repository) = (self.clone(), repository.to_owned());
        let begin = async move {
            let upload = store.ask_for_upload(&repository).await?;
            Ok((upload.clone(), Begun { store, upload: Some(upload) }))
        };
        self.beginning.spawn(begin.in_current_span()).await.map_err(|_| Error::Interrupted)?
    }

    /// Begins an upload to a repository, and gives it up.
    pub(super) async fn try_to_write(&self, repository: &str) -> Result<()> {
        drop(self.begin(repository).await?);
        self.abort_dropped().await;
        Ok(())
    }

    async fn ask_for_upload(&self, repository: &str) -> Result<Upload> {
        let scope = Scope::push(repository);
        let url = self.client().url(&format!("{repository}/blobs/uploads/"))?;
        let (what, asked) = (what(&Method::POST, &url), url.clone());
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
        let ask = Ask { method: Method::POST, url, scope, headers, body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(refusal(&what, response).await);
        }
        let url = self.client().target(&what, &asked, response.headers())?;
        Ok(Upload { repository: repository.to_owned(), url })
    }

    /// Writes a blob, the first `from` bytes of which the registry has.
    pub(super) async fn upload(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()> {
        let feed = Feed::new(chunks);
        if from == 0 && blob.size <= CHUNK {
            return self.upload_whole(repository, blob, feed).await;
        }
        let result = self.upload_chunks(stage, repository, blob, from, feed).await;
        if let Err(Error::UploadGone(_)) = &result
            && let Some(session) = stage.journal.upload(blob.digest).await?
        {
            if let Some(upload) = self.session(&session) {
                self.try_to_abort(&upload).await;
            }
            stage.journal.forget(blob.digest).await?;
        }
        result
    }

    async fn upload_whole(&self, repository: &str, blob: &Descriptor, mut feed: Feed) -> Result<()> {
        let (upload, begun) = self.begin(repository).await?;
        self.commit(&upload, blob, 0, &mut feed).await?;
        begun.ended();
        Ok(())
    }

    /// Gives up the uploads that were dropped unfinished, with whatever carried them out.
    pub(super) async fn abort_dropped(&self) {
        self.beginning.wait().await;
        let dropped = mem::take(&mut *self.dropped());
        for upload in dropped {
            self.try_to_abort(&upload).await;
        }
    }

    fn dropped(&self) -> MutexGuard<'_, Vec<Upload>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn upload_chunks(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
        from: u64,
        mut feed: Feed,
    ) -> Result<()> {
        let journal = &stage.journal;
        let mut upload = if from > 0 {
            let known = journal.upload(blob.digest).await?.and_then(|session| self.session(&session));
            known.ok_or_else(|| Error::UploadGone(format!("the blob {}", blob.digest).into()))?
        } else {
            let (upload, begun) = self.begin(repository).await?;
            journal.note(blob.digest, &upload.session()?).await?;
            begun.ended();
            upload
        };
        let mut offset = from;
        while blob.size - offset > CHUNK {
            upload = self.append(upload, offset, &mut feed).await?;
            offset += CHUNK;
            journal.note(blob.digest, &upload.session()?).await?;
        }
        self.commit(&upload, blob, offset, &mut feed).await?;
        journal.forget(blob.digest).await
    }

    /// Sends one chunk, and returns where the upload goes on.
    async fn append(&self, upload: Upload, offset: u64, feed: &mut Feed) -> Result<Upload> {
        let what = what(&Method::PATCH, &upload.url);
        let end = offset + CHUNK;
        let range = header(CONTENT_RANGE, format!("{offset}-{}", end - 1))?;
        let response = self
            .send(Method::PATCH, &upload.url, &Scope::push(&upload.repository), CHUNK, Some(range), feed, false)
            .await?;
        if !response.status().is_success() {
            return Err(gone_or(refusal(&what, response).await, &what));
        }
        if end_of_range(response.headers()).is_some_and(|there| there != end) {
            return Err(Error::UploadGone(what.into()));
        }
        Ok(Upload { url: self.client().target(&what, &upload.url, response.headers())?, ..upload })
    }

    /// Sends what is left, and makes the registry verify the whole.
    async fn commit(&self, upload: &Upload, blob: &Descriptor, offset: u64, feed: &mut Feed) -> Result<()> {
        let mut url = upload.url.clone();
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let what = what(&Method::PUT, &url);
        let bytes = blob.size - offset;
        let range = (offset > 0).then(|| header(CONTENT_RANGE, format!("{offset}-{}", blob.size - 1))).transpose()?;
        if bytes == 0 {
            feed.end().await?;
        }
        let response = self.send(Method::PUT, &url, &Scope::push(&upload.repository), bytes, range, feed, true).await?;
        if response.status() != StatusCode::CREATED {
            return Err(gone_or(refusal(&what, response).await, &what));
        }
        let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match digest.map(str::parse::<Digest>) {
            None | Some(Err(_)) => Ok(()),
            Some(Ok(digest)) if digest == blob.digest => Ok(()),
            Some(Ok(actual)) => Err(Error::DigestMismatch { image: what, expected: blob.digest, actual }),
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn send(
        &self,
        method: Method,
        url: &Url,
        scope: &Scope,
        bytes: u64,
        range: Option<(http::HeaderName, HeaderValue)>,
        feed: &mut Feed,
        last: bool,
    ) -> Result<Response> {
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (CONTENT_LENGTH, HeaderValue::from(bytes)),
        ]);
        headers.extend(range);
        let (pipe, body) = pipe();
        let request = self.client().stream(method, url, scope, headers, body, COMMIT);
        let (filled, answered) = tokio::join!(feed.fill(pipe, bytes, last), request);
        // What broke the stream off is the reason, whatever became of the request.
        filled?;
        answered
    }
}

/// A registry that does not know the upload any more has lost it: that is no reason to give up but to begin anew. So is one that
/// finds another digest in the end: the bytes were right when they left. (One that is further, or not as far, says 416, and is
/// asked where it is.)
fn gone_or(error: Error, what: &str) -> Error {
    match &error {
        Error::Status { status, .. } if matches!(status.as_u16(), 400 | 404) => {
            tracing::info!(%error, "an upload is gone");
            Error::UploadGone(what.to_owned().into())
        }
        _ => error,
    }
}

/// How many bytes a registry says it has, in the header `Range: 0-END` of its answers about an upload, END being the last.
/// Registries say `0-0` for none as well as for one; none is the safe reading.
fn end_of_range(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?;
    let (first, last) = text.trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    let bytes = if last == 0 { 0 } else { last.checked_add(1)? };
    (first.trim() == "0").then_some(bytes)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::RANGE};

    use super::end_of_range;

    #[test]
    fn how_far_an_upload_has_come_is_read() {
        for (text, end) in [
            ("0-0", Some(0)),
            ("0-1023", Some(1024)),
            ("bytes=0-1023", Some(1024)),
            ("5-9", None),
            ("x", None),
            ("0-18446744073709551615", None),
            ("0-18446744073709551616", None),
        ] {
            let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(text))]);
            assert_eq!(end_of_range(&headers), end, "{text}");
        }
    }
}
