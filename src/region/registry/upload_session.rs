//! Uploads that a registry has begun (OCI distribution specification 1.1, "Pushing blobs"): how one is begun, how far it has come, and how
//! it is given up.

use std::{
    mem,
    sync::{MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_LENGTH, LOCATION, RANGE},
};
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;
use url::Url;

use super::{
    RegistryStore,
    client::{Ask, Scope, what},
    upload_mode::UploadMode,
};
use crate::{
    domain::Descriptor,
    region::{Error, Result, Stage, answer::refusal},
};

/// The limits of a chunk, as an answer to `POST` tells them: the smallest is the specification's, the largest is an extension.
const MIN_CHUNK: &str = "oci-chunk-min-length";
const MAX_CHUNK: &str = "oci-chunk-max-length";

/// An upload that a registry has begun, as the journal has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Upload {
    pub(super) repository: String,
    /// Where it goes on.
    pub(super) url: Url,
    /// How many of the first bytes the registry has said to have taken.
    #[serde(default)]
    pub(super) taken: u64,
    /// The smallest and the largest chunk that the registry wants, in bytes.
    #[serde(default)]
    min_chunk: Option<u64>,
    #[serde(default)]
    max_chunk: Option<u64>,
}

impl Upload {
    pub(super) fn session(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::malformed("an upload", error))
    }

    /// The mode within the limits of this upload.
    pub(super) fn fit(&self, mode: UploadMode, size: u64) -> UploadMode {
        let (min, max) = (self.min_chunk.unwrap_or(1), self.max_chunk.unwrap_or(u64::MAX));
        match mode {
            UploadMode::Chunked(chunk) => UploadMode::Chunked(chunk.max(min).min(max)),
            _ if size > max => UploadMode::Chunked(max),
            mode => mode,
        }
    }
}

/// An upload that no journal knows of. Dropped unfinished, it is kept to be given up: whoever carried it out may be gone.
#[derive(Debug)]
pub(super) struct Begun {
    store: RegistryStore,
    upload: Option<Upload>,
}

impl Begun {
    /// It is finished, or a journal knows of it.
    pub(super) fn ended(mut self) {
        self.upload = None;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.store.dropped().extend(self.upload.take());
    }
}

impl RegistryStore {
    /// How far the upload in the journal has come, if the registry still has something of it.
    pub(super) async fn resumable(&self, stage: &Stage, repository: &str, blob: &Descriptor) -> Result<Option<u64>> {
        let Some(session) = stage.journal.upload(blob.digest).await? else { return Ok(None) };
        if let Some(upload) = self.session(&session).filter(|upload| upload.repository == repository) {
            self.recall(stage).await;
            let mode = upload.fit(self.learned.mode(blob.size), blob.size);
            if matches!(mode, UploadMode::Chunked(_))
                && let Some((upload, there)) = self.progress(&upload, blob).await?
                && there > 0
            {
                stage.journal.note(blob.digest, &upload.session()?).await?;
                return Ok(Some(there));
            }
            self.abort_upload(&upload).await?;
        }
        stage.journal.forget(blob.digest).await?;
        Ok(None)
    }

    /// What the registry says about an upload: where it goes on, and how many bytes are there. Nothing if it is of no use. Of a registry
    /// whose `Range` is something else, or that tells nothing about uploads, it is believed what it said to have taken.
    pub(super) async fn progress(&self, upload: &Upload, blob: &Descriptor) -> Result<Option<(Upload, u64)>> {
        let url = upload.url.clone();
        let what = what(&Method::GET, &url);
        let scope = Scope::push(&upload.repository);
        let ask = Ask { method: Method::GET, url: url.clone(), scope, headers: HeaderMap::new(), body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        let told = match response.status() {
            status if status.is_success() && self.learned.reports_offsets() => end_of_range(response.headers()),
            status if status.is_success() || matches!(status.as_u16(), 405 | 501) => Some(upload.taken),
            _ => None,
        };
        let there = told.filter(|there| *there < blob.size);
        let Some(there) = there else { return Ok(None) };
        // The answer may say where it goes on from now on; if not, it is where it was.
        let url = match response.headers().get(LOCATION) {
            Some(_) => self.client().target(&what, &url, response.headers())?,
            None => url,
        };
        Ok(Some((Upload { url, taken: there, ..upload.clone() }, there)))
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
            status if status.is_success() || matches!(status.as_u16(), 400 | 404 | 405 | 410 | 416) => Ok(()),
            _ => Err(refusal(&what, response).await),
        }
    }

    /// Gives an upload up after something went wrong, which is what is told.
    pub(super) async fn try_to_abort(&self, upload: &Upload) {
        if let Err(error) = self.abort_upload(upload).await {
            tracing::warn!(%error, "an upload could not be given up");
        }
    }

    /// Gives up the upload that the journal has of a blob, if it has one.
    pub(super) async fn discard(&self, stage: &Stage, blob: &Descriptor) -> Result<()> {
        if let Some(session) = stage.journal.upload(blob.digest).await? {
            if let Some(upload) = self.session(&session) {
                self.try_to_abort(&upload).await;
            }
            stage.journal.forget(blob.digest).await?;
        }
        Ok(())
    }

    /// Begins an upload, on a task of its own: once the registry has been asked, its answer must not be lost, even if nobody waits
    /// for it any more.
    pub(super) async fn begin(&self, repository: &str) -> Result<(Upload, Begun)> {
        let (store, repository) = (self.clone(), repository.to_owned());
        let begin = async move {
            let upload = store.ask_for_upload(&repository).await?;
            Ok((upload.clone(), store.begun(upload)))
        };
        self.on_own_task(begin).await
    }

    /// Does something that begins an upload on a task of its own.
    pub(super) async fn on_own_task<T: Send + 'static>(
        &self,
        begin: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.beginning.spawn(begin.in_current_span()).await.map_err(|_| Error::Interrupted)?
    }

    /// An upload that the registry has just begun.
    pub(super) fn begun(&self, upload: Upload) -> Begun {
        Begun { store: self.clone(), upload: Some(upload) }
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
        // The specification's answer is 202; some say 200.
        if !response.status().is_success() {
            return Err(refusal(&what, response).await);
        }
        self.begun_at(repository, &what, &asked, response.headers())
    }

    /// The upload that an answer to `POST` is about.
    pub(super) fn begun_at(&self, repository: &str, what: &str, asked: &Url, headers: &HeaderMap) -> Result<Upload> {
        let length = |name| headers.get(name).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        Ok(Upload {
            repository: repository.to_owned(),
            url: self.client().target(what, asked, headers)?,
            taken: 0,
            min_chunk: length(MIN_CHUNK),
            max_chunk: length(MAX_CHUNK).filter(|max| *max > 0),
        })
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
}

/// How many bytes a registry says it has, in the header `Range: 0-END` of its answers about an upload, END being the last.
/// Registries say `0-0` for none as well as for one; none is the safe reading.
pub(super) fn end_of_range(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?;
    let (first, last) = text.trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    let bytes = if last == 0 { 0 } else { last.checked_add(1)? };
    (first.trim() == "0").then_some(bytes)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::RANGE};

    use super::{Upload, end_of_range};
    use crate::region::registry::upload_mode::UploadMode;

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

    #[test]
    fn chunks_are_as_large_as_the_registry_wants_them() {
        let upload = |min_chunk, max_chunk| {
            let url = "https://r.example/v2/a/blobs/uploads/1".parse().expect("a URL");
            Upload { repository: "a".into(), url, taken: 0, min_chunk, max_chunk }
        };
        for (min, max, mode, size, fits) in [
            (None, None, UploadMode::Chunked(64), 100, UploadMode::Chunked(64)),
            (Some(80), None, UploadMode::Chunked(64), 100, UploadMode::Chunked(80)),
            (None, Some(10), UploadMode::Chunked(64), 100, UploadMode::Chunked(10)),
            (Some(80), Some(10), UploadMode::Chunked(64), 100, UploadMode::Chunked(10)),
            (None, Some(10), UploadMode::Monolithic, 100, UploadMode::Chunked(10)),
            (None, Some(100), UploadMode::Monolithic, 100, UploadMode::Monolithic),
            (None, Some(10), UploadMode::Streamed, 100, UploadMode::Chunked(10)),
        ] {
            assert_eq!(upload(min, max).fit(mode, size), fits, "{min:?} {max:?} {mode:?}");
        }
    }
}
