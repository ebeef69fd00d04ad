//! Blob checks and uploads combined into one request: the client asks the registry to mount the blob from the same
//! repository (OCI distribution specification 1.1, "Mounting a blob from another repository"). A registry that has the
//! blob responds with 201, and the usual check follows. A registry that lacks the blob responds with 202 and has
//! started an upload. Most small blobs are missing, so this saves one request for each.
//!
//! A registry without mounts always responds with 202. It would then receive blobs that it already has, possibly in
//! damaged form. Therefore, a single trial with a blob that was just uploaded first determines whether the registry
//! supports this.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{Algorithm, Descriptor, Digest};
use http::StatusCode;
use tokio::time::Instant;

use super::{
    RegistryStore,
    client::{Scope, what},
    upload_session::{Begun, Upload},
};
use crate::{Error, Journal, Result, Stage, http_response::refusal, store::WORTH_MOUNTING};

/// How long the trial is not repeated after a failure.
const PAUSE: Duration = Duration::from_secs(600);
/// Maximum number of uploads per image that wait for their blobs, and their longest wait: a registry may abort idle
/// uploads.
const MAX_WAITING: usize = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whether a registry reports an existing blob in response to a request to mount it from the same repository.
#[derive(Debug, Default)]
pub(super) struct SelfMount(Mutex<Known>);

#[derive(Debug, Clone, Copy, Default)]
enum Known {
    /// Not tried yet.
    #[default]
    Nothing,
    /// Supported.
    Works,
    /// Unsupported, or a trial is running. The next trial starts no earlier than `until`.
    Fails { until: Instant },
}

impl SelfMount {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn works(&self) -> bool {
        matches!(*self.known(), Known::Works)
    }

    /// Returns whether the caller has to run the trial. Blocks further trials for [`PAUSE`].
    fn begin_trial(&self, now: Instant) -> bool {
        let mut known = self.known();
        let is_open = match *known {
            Known::Nothing => true,
            Known::Works => false,
            Known::Fails { until } => until <= now,
        };
        if is_open {
            *known = Known::Fails { until: now + PAUSE };
        }
        is_open
    }

    fn proved(&self) {
        *self.known() = Known::Works;
    }

    fn failed(&self, now: Instant) {
        *self.known() = Known::Fails { until: now + PAUSE };
    }
}

/// Uploads that were started by the check for a blob and wait for its bytes. Unused uploads are aborted. Clones share
/// the uploads.
#[derive(Debug, Clone, Default)]
pub struct WaitingUploads(Arc<Mutex<HashMap<Digest, Waiting>>>);

#[derive(Debug)]
struct Waiting {
    since: Instant,
    upload: Upload,
    begun: Begun,
}

impl WaitingUploads {
    fn uploads(&self) -> MutexGuard<'_, HashMap<Digest, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self) -> bool {
        self.uploads().len() < MAX_WAITING
    }

    fn has(&self, blob: Digest) -> bool {
        self.uploads().get(&blob).is_some_and(|waiting| waiting.since.elapsed() < LONGEST_WAIT)
    }

    fn keep(&self, blob: Digest, upload: Upload, begun: Begun) {
        self.uploads().insert(blob, Waiting { since: Instant::now(), upload, begun });
    }

    /// Returns the waiting upload of a blob, unless it has waited too long.
    pub(super) fn take(&self, blob: Digest) -> Option<(Upload, Begun)> {
        let Waiting { since, upload, begun } = self.uploads().remove(&blob)?;
        (since.elapsed() < LONGEST_WAIT).then_some((upload, begun))
    }
}

/// Result of a check for a blob by starting its upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The blob is missing, and an upload waits for it.
    Begun,
    /// The blob is present.
    Whole,
    /// Unknown: another kind of request has to check the blob.
    Unsaid,
}

impl RegistryStore {
    /// Checks for a blob by starting its upload, if the registry supports that.
    pub(super) async fn stat_by_upload(&self, stage: &Stage, repository: &str, blob: &Descriptor) -> Answer {
        if stage.waiting.has(blob.digest) {
            return Answer::Begun;
        }
        let is_doubted = stage.suspect || self.damaged.has(repository, blob.digest);
        let is_canonical = blob.digest.algorithm() == Algorithm::CANONICAL;
        if blob.size > WORTH_MOUNTING
            || is_doubted
            || !is_canonical
            || !self.self_mount.works()
            || !stage.waiting.has_room()
        {
            return Answer::Unsaid;
        }
        match self.begin_unless_there(repository, blob.digest, Some(Arc::clone(&stage.journal))).await {
            Ok(Some((upload, begun))) => {
                stage.waiting.keep(blob.digest, upload, begun);
                Answer::Begun
            }
            Ok(None) => Answer::Whole,
            Err(error) => {
                tracing::debug!(%error, blob = %blob.digest, "failed to check for a blob by a self-mount; using HEAD");
                if matches!(error, Error::Status { .. }) {
                    self.self_mount.failed(Instant::now());
                }
                Answer::Unsaid
            }
        }
    }

    /// Records that the registry reported a blob that is missing.
    pub(super) fn said_wrong(&self) {
        self.self_mount.failed(Instant::now());
    }

    /// Tries a self-mount with a blob that was just uploaded, unless an earlier trial has a recent result.
    pub(super) async fn try_self_mount(&self, repository: &str, blob: &Descriptor) {
        let is_canonical = blob.digest.algorithm() == Algorithm::CANONICAL;
        if blob.size > WORTH_MOUNTING || !is_canonical || !self.self_mount.begin_trial(Instant::now()) {
            return;
        }
        // If the registry started an upload, dropping the upload queues it for an abort.
        match self.begin_unless_there(repository, blob.digest, None).await {
            Ok(None) => self.self_mount.proved(),
            Ok(Some(_)) => {}
            Err(error) => tracing::debug!(%error, "the trial of a self-mount failed; will retry later"),
        }
    }

    /// Starts the upload of a blob, or returns `None` if the registry reports that it has the blob.
    async fn begin_unless_there(
        &self,
        repository: &str,
        blob: Digest,
        journal: Option<Arc<dyn Journal>>,
    ) -> Result<Option<(Upload, Begun)>> {
        let (store, repository) = (self.clone(), repository.to_owned());
        let begin = async move {
            let ask = store.mount_ask(&repository, blob, &repository, Scope::push(&repository))?;
            let what = what(&ask.method, &ask.url);
            let response = store.client().ask_once(&ask).await?;
            match response.status() {
                StatusCode::CREATED => Ok(None),
                StatusCode::ACCEPTED => {
                    let upload = store.begun_at(&repository, &what, &ask.url, response.headers())?;
                    Ok(Some((upload.clone(), store.begun(upload, journal))))
                }
                _ => Err(refusal(&what, response).await),
            }
        };
        self.on_own_task(begin).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{PAUSE, SelfMount};

    #[test]
    fn it_is_tried_once_and_again_after_a_while() {
        let (known, now) = (SelfMount::default(), Instant::now());
        assert!(!known.works(), "nothing is known");
        assert!(known.begin_trial(now) && !known.begin_trial(now), "one is enough");
        assert!(known.begin_trial(now + PAUSE));
        known.proved();
        assert!(known.works() && !known.begin_trial(now + PAUSE));
        known.failed(now);
        assert!(!known.works() && !known.begin_trial(now) && known.begin_trial(now + PAUSE));
    }
}
