//! Uploads that a registry has begun (OCI distribution specification 1.1, "Pushing blobs"): how one is begun, how far it has come, and how
//! it is given up.

use std::{
    mem,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_LENGTH, LOCATION, RANGE},
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::Instrument as _;
use url::Url;

use super::{
    RegistryStore,
    client::{Ask, Scope, what},
    upload_mode::UploadMode,
};
use crate::{
    domain::{Algorithm, Descriptor},
    region::{Error, Journal, Result, Stage, answer::refusal},
};

/// How long a registry may take to abort an upload. What hangs for longer is tried again later.
const ABORT: Duration = Duration::from_secs(3);
/// Uploads that are aborted at the same time.
const ABORTS_AT_ONCE: usize = 8;
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
    pub(super) min_chunk: Option<u64>,
    #[serde(default)]
    pub(super) max_chunk: Option<u64>,
    /// Where the registry has led the request that failed last.
    #[serde(default)]
    pub(super) redirect: Option<Redirect>,
}

/// Where a registry leads one request of an upload (RFC 9110, sections 15.4.8 and 15.4.9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Redirect {
    /// Where in the blob the request's bytes begin.
    pub(super) offset: u64,
    /// Whether it is the last one of the upload.
    pub(super) last: bool,
    /// Where it leads.
    pub(super) url: Url,
    /// How often it has led on already.
    pub(super) count: usize,
}

impl Upload {
    /// Where the registry has led the request with the bytes from `offset` on, if it has.
    pub(super) fn redirect_of(&self, offset: u64, last: bool) -> Option<&Redirect> {
        self.redirect.as_ref().filter(|redirect| (redirect.offset, redirect.last) == (offset, last))
    }

    /// Whether it is to be begun once more, where the registry has led its first request.
    fn begins_elsewhere(&self) -> bool {
        self.taken == 0 && self.redirect.is_some()
    }

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

/// An upload that no journal knows of. Dropped unfinished, it is kept to be aborted: whoever carried it out may be gone.
#[derive(Debug)]
pub(super) struct Begun {
    store: RegistryStore,
    upload: Option<Dropped>,
}

/// An upload that is to be aborted.
#[derive(Debug, Clone)]
pub(super) struct Dropped {
    upload: Upload,
    /// What remembers it where the registry does not abort it; nothing for one that tries whether the registry can be written.
    journal: Option<Arc<dyn Journal>>,
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
            if upload.begins_elsewhere() {
                return Ok(None);
            }
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

    /// The upload of a blob whose first request the registry has led somewhere else.
    pub(super) async fn begun_elsewhere(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
    ) -> Result<Option<Upload>> {
        let session = stage.journal.upload(blob.digest).await?;
        let upload = session.and_then(|session| self.session(&session));
        Ok(upload.filter(|upload| upload.repository == repository && upload.begins_elsewhere()))
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
        let is_allowed = |url| self.client().allow("an upload", url).is_ok();
        let are_allowed = is_allowed(&upload.url) && upload.redirect.iter().all(|redirect| is_allowed(&redirect.url));
        are_allowed.then_some(upload)
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

    /// Aborts an upload that nothing will resume. One that the registry does not abort in time is left to the journal.
    async fn abort_or_abandon(&self, upload: &Upload, journal: Option<&dyn Journal>) -> Result<()> {
        let aborted = timeout(ABORT, self.abort_upload(upload)).await;
        let Err(error) = aborted.unwrap_or(Err(Error::Stalled("aborting an upload"))) else { return Ok(()) };
        tracing::warn!(%error, repository = upload.repository, "failed to abort an upload; maintenance will retry");
        match journal {
            Some(journal) => journal.abandon(&upload.session()?).await,
            None => Ok(()),
        }
    }

    /// Aborts an upload that was begun in place of something else.
    pub(super) async fn abort_needless(&self, stage: &Stage, upload: &Upload) {
        if let Err(error) = self.abort_or_abandon(upload, Some(&*stage.journal)).await {
            tracing::warn!(%error, "an upload stays in the registry until that clears it");
        }
    }

    /// Gives up the upload that the journal has of a blob, if it has one.
    pub(super) async fn discard(&self, stage: &Stage, blob: &Descriptor) -> Result<()> {
        if let Some(session) = stage.journal.upload(blob.digest).await? {
            if let Some(upload) = self.session(&session) {
                self.abort_or_abandon(&upload, Some(&*stage.journal)).await?;
            }
            stage.journal.forget(blob.digest).await?;
        }
        Ok(())
    }

    /// Begins an upload, on a task of its own: once the registry has been asked, its answer must not be lost, even if nobody waits
    /// for it any more.
    pub(super) async fn begin(
        &self,
        repository: &str,
        algorithm: Algorithm,
        journal: Option<Arc<dyn Journal>>,
    ) -> Result<(Upload, Begun)> {
        let (store, repository) = (self.clone(), repository.to_owned());
        let begin = async move {
            let upload = store.ask_for_upload(&repository, algorithm).await?;
            Ok((upload.clone(), store.begun(upload, journal)))
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
    pub(super) fn begun(&self, upload: Upload, journal: Option<Arc<dyn Journal>>) -> Begun {
        Begun { store: self.clone(), upload: Some(Dropped { upload, journal }) }
    }

    /// Begins an upload to a repository, and gives it up.
    pub(super) async fn try_to_write(&self, repository: &str) -> Result<()> {
        drop(self.begin(repository, Algorithm::CANONICAL, None).await?);
        self.abort_dropped().await;
        Ok(())
    }

    async fn ask_for_upload(&self, repository: &str, algorithm: Algorithm) -> Result<Upload> {
        let scope = Scope::push(repository);
        let mut url = self.client().url(&format!("{repository}/blobs/uploads/"))?;
        // So that the registry hashes by it as the bytes come ("Pushing a blob in chunks").
        if algorithm != Algorithm::CANONICAL {
            url.query_pairs_mut().append_pair("digest-algorithm", algorithm.as_str());
        }
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
            redirect: None,
        })
    }

    /// Aborts the uploads that were dropped unfinished, with whatever carried them out. Where that is broken off, those are kept that are left.
    pub(super) async fn abort_dropped(&self) {
        self.beginning.wait().await;
        let dropped = mem::take(&mut *self.dropped());
        let begun = dropped.into_iter().map(|upload| Begun { store: self.clone(), upload: Some(upload) });
        // All are guarded before the first is aborted.
        let begun: Vec<Begun> = begun.collect();
        stream::iter(begun).for_each_concurrent(ABORTS_AT_ONCE, |begun| self.abort_begun(begun)).await;
    }

    async fn abort_begun(&self, begun: Begun) {
        let Some(Dropped { upload, journal }) = begun.upload.clone() else { return };
        match self.abort_or_abandon(&upload, journal.as_deref()).await {
            Ok(()) => begun.ended(),
            Err(error) => tracing::warn!(%error, "failed to remember an upload that was not aborted; will retry"),
        }
    }

    fn dropped(&self) -> MutexGuard<'_, Vec<Dropped>> {
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
            Upload { repository: "a".into(), url, taken: 0, min_chunk, max_chunk, redirect: None }
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
