//! Uploads that a registry has started (OCI distribution specification 1.1, "Pushing blobs"): their start, progress and
//! abort.

use std::{
    mem,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use domain::{Algorithm, Descriptor};
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
use crate::{Error, Journal, Result, Stage, http_response::refusal};

/// Timeout for aborting an upload. Maintenance retries a failed abort later.
const ABORT: Duration = Duration::from_secs(3);
/// Maximum number of concurrent aborts.
const ABORTS_AT_ONCE: usize = 8;
/// Chunk limits in the response to `POST`, in bytes: the minimum is part of the specification, the maximum is an
/// extension.
const MIN_CHUNK: &str = "oci-chunk-min-length";
const MAX_CHUNK: &str = "oci-chunk-max-length";

/// An upload that a registry has started, in the form that the journal stores.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Upload {
    pub(super) repository: String,
    /// URL of the next request.
    pub(super) url: Url,
    /// Number of leading bytes that the registry has accepted.
    #[serde(default)]
    pub(super) taken: u64,
    /// Minimum and maximum chunk size that the registry requests, in bytes.
    #[serde(default)]
    pub(super) min_chunk: Option<u64>,
    #[serde(default)]
    pub(super) max_chunk: Option<u64>,
    /// Redirect of the last failed request.
    #[serde(default)]
    pub(super) redirect: Option<Redirect>,
}

/// Redirect of one request of an upload (RFC 9110, sections 15.4.8 and 15.4.9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Redirect {
    /// Offset of the request's bytes in the blob.
    pub(super) offset: u64,
    /// Whether the request is the last one of the upload.
    pub(super) last: bool,
    /// Target of the redirect.
    pub(super) url: Url,
    /// Number of redirects so far.
    pub(super) count: usize,
}

impl Upload {
    /// Returns the redirect of the request whose bytes start at `offset`, if there is one.
    pub(super) fn redirect_of(&self, offset: u64, last: bool) -> Option<&Redirect> {
        self.redirect.as_ref().filter(|redirect| (redirect.offset, redirect.last) == (offset, last))
    }

    /// Returns whether the upload starts again at the redirect target of its first request.
    fn begins_elsewhere(&self) -> bool {
        self.taken == 0 && self.redirect.is_some()
    }

    pub(super) fn session(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::malformed("an upload", error))
    }

    /// Adapts a mode to the limits of this upload.
    pub(super) fn fit(&self, mode: UploadMode, size: u64) -> UploadMode {
        let (min, max) = (self.min_chunk.unwrap_or(1), self.max_chunk.unwrap_or(u64::MAX));
        match mode {
            UploadMode::Chunked(chunk) => UploadMode::Chunked(chunk.max(min).min(max)),
            _ if size > max => UploadMode::Chunked(max),
            mode => mode,
        }
    }
}

/// An upload that no journal has recorded. If it is dropped unfinished, it is queued for an abort, because the task
/// that ran it may have ended.
#[derive(Debug)]
pub(super) struct Begun {
    store: RegistryStore,
    upload: Option<Dropped>,
}

/// An upload to abort.
#[derive(Debug, Clone)]
pub(super) struct Dropped {
    upload: Upload,
    /// The journal that records the upload if the abort fails; `None` for a trial upload.
    journal: Option<Arc<dyn Journal>>,
}

impl Begun {
    /// Marks the upload as finished, or as recorded in a journal.
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
    /// Returns the offset at which the upload in the journal can be resumed, if the registry still has some of its
    /// bytes.
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

    /// Returns the upload of a blob whose first request was redirected.
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

    /// Queries an upload. Returns the upload with its next URL and the number of received bytes, or `None` if the
    /// upload can't be resumed. If the registry's `Range` is unreliable, or if the registry does not support the query,
    /// uses the number of bytes that the registry has accepted so far.
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
        // The response may contain a new URL. Otherwise the URL is unchanged.
        let url = match response.headers().get(LOCATION) {
            Some(_) => self.client().target(&what, &url, response.headers())?,
            None => url,
        };
        Ok(Some((Upload { url, taken: there, ..upload.clone() }, there)))
    }

    /// Parses an upload from the journal. Returns `None` if its URLs are not allowed, because the configuration may
    /// have changed since.
    pub(super) fn session(&self, session: &str) -> Option<Upload> {
        let upload: Upload = serde_json::from_str(session).ok()?;
        let is_allowed = |url| self.client().allow("an upload", url).is_ok();
        let are_allowed = is_allowed(&upload.url) && upload.redirect.iter().all(|redirect| is_allowed(&redirect.url));
        are_allowed.then_some(upload)
    }

    /// Aborts an upload. Succeeds if the upload does not exist.
    pub(super) async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        let (url, scope) = (upload.url.clone(), Scope::push(&upload.repository));
        let what = what(&Method::DELETE, &url);
        let ask = Ask { method: Method::DELETE, url, scope, headers: HeaderMap::new(), body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        match response.status() {
            // The registry may not have the upload, may not support `DELETE`, or may reject the URL of a truncated
            // upload.
            status if status.is_success() || matches!(status.as_u16(), 400 | 404 | 405 | 410 | 416) => Ok(()),
            _ => Err(refusal(&what, response).await),
        }
    }

    /// Aborts an upload that no caller will resume. If the abort fails or times out, records the upload in the journal.
    async fn abort_or_abandon(&self, upload: &Upload, journal: Option<&dyn Journal>) -> Result<()> {
        let aborted = timeout(ABORT, self.abort_upload(upload)).await;
        let Err(error) = aborted.unwrap_or(Err(Error::Stalled("aborting an upload"))) else { return Ok(()) };
        tracing::warn!(%error, repository = upload.repository, "failed to abort an upload; maintenance will retry");
        match journal {
            Some(journal) => journal.abandon(&upload.session()?).await,
            None => Ok(()),
        }
    }

    /// Aborts an upload that the registry started instead of a mount.
    pub(super) async fn abort_needless(&self, stage: &Stage, upload: &Upload) {
        if let Err(error) = self.abort_or_abandon(upload, Some(&*stage.journal)).await {
            tracing::warn!(%error, "failed to record an upload that was not aborted; the registry has to expire it");
        }
    }

    /// Aborts and removes the upload of a blob in the journal, if there is one.
    pub(super) async fn discard(&self, stage: &Stage, blob: &Descriptor) -> Result<()> {
        if let Some(session) = stage.journal.upload(blob.digest).await? {
            if let Some(upload) = self.session(&session) {
                self.abort_or_abandon(&upload, Some(&*stage.journal)).await?;
            }
            stage.journal.forget(blob.digest).await?;
        }
        Ok(())
    }

    /// Starts an upload on a separate task, so that the response is handled even if the caller is canceled.
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

    /// Runs a future that starts an upload on a separate task.
    pub(super) async fn on_own_task<T: Send + 'static>(
        &self,
        begin: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.beginning.spawn(begin.in_current_span()).await.map_err(|_| Error::Interrupted)?
    }

    /// Guards an upload that the registry has just started.
    pub(super) fn begun(&self, upload: Upload, journal: Option<Arc<dyn Journal>>) -> Begun {
        Begun { store: self.clone(), upload: Some(Dropped { upload, journal }) }
    }

    /// Starts an upload to a repository and aborts it.
    pub(super) async fn try_to_write(&self, repository: &str) -> Result<()> {
        drop(self.begin(repository, Algorithm::CANONICAL, None).await?);
        self.abort_dropped().await;
        Ok(())
    }

    async fn ask_for_upload(&self, repository: &str, algorithm: Algorithm) -> Result<Upload> {
        let scope = Scope::push(repository);
        let mut url = self.client().url(&format!("{repository}/blobs/uploads/"))?;
        // The registry then hashes the bytes with this algorithm as they arrive ("Pushing a blob in chunks").
        if algorithm != Algorithm::CANONICAL {
            url.query_pairs_mut().append_pair("digest-algorithm", algorithm.as_str());
        }
        let (what, asked) = (what(&Method::POST, &url), url.clone());
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
        let ask = Ask { method: Method::POST, url, scope, headers, body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        // The specified status is 202; some registries send 200.
        if !response.status().is_success() {
            return Err(refusal(&what, response).await);
        }
        self.begun_at(repository, &what, &asked, response.headers())
    }

    /// Returns the upload that a response to `POST` describes.
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

    /// Waits for the tasks that are starting uploads, and aborts the uploads that were dropped unfinished. If this
    /// future is canceled, the remaining uploads stay queued.
    pub(super) async fn abort_dropped(&self) {
        self.beginning.wait().await;
        let dropped = mem::take(&mut *self.dropped());
        let begun = dropped.into_iter().map(|upload| Begun { store: self.clone(), upload: Some(upload) });
        // Every upload has a guard before the first abort starts.
        let begun: Vec<Begun> = begun.collect();
        stream::iter(begun).for_each_concurrent(ABORTS_AT_ONCE, |begun| self.abort_begun(begun)).await;
    }

    async fn abort_begun(&self, begun: Begun) {
        let Some(Dropped { upload, journal }) = begun.upload.clone() else { return };
        match self.abort_or_abandon(&upload, journal.as_deref()).await {
            Ok(()) => begun.ended(),
            Err(error) => tracing::warn!(%error, "failed to record an upload that was not aborted; will retry"),
        }
    }

    fn dropped(&self) -> MutexGuard<'_, Vec<Dropped>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the number of bytes in the header `Range: 0-END` of a response about an upload, where END is the last byte.
/// Registries send `0-0` for no bytes as well as for one byte; this function returns 0, the safe interpretation.
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
    use crate::registry::upload_mode::UploadMode;

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
