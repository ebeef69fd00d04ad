//! Looking for a blob and beginning its upload by one request: the registry is asked to mount the blob from the very repository that it is
//! wanted in (OCI distribution specification 1.1, "Mounting a blob from another repository"). It answers 201 if it has the blob there, and is
//! then asked for it as ever; it answers 202 if it has not, and has begun an upload. Most small blobs are not there, so that this saves a request
//! for each.
//!
//! A registry that mounts nothing answers 202 in any case, and would be sent what it has, which it may have damaged. So it is tried once, with a
//! blob that it has just been sent, whether a registry can do this.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use tokio::time::Instant;

use super::{
    RegistryStore,
    client::{Scope, what},
    upload_session::{Begun, Upload},
};
use crate::{
    domain::{Algorithm, Descriptor, Digest},
    region::{Error, Journal, Result, Stage, answer::refusal, store::WORTH_LENDING},
};

/// For how long a registry that does not do it, or did something else, is not asked.
const PAUSE: Duration = Duration::from_secs(600);
/// Uploads of one image that may wait for their blobs, and for how long: a registry may give up one that nothing comes for.
const MAX_WAITING: usize = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whether a registry says that it has a blob when it is asked to mount it from where it is.
#[derive(Debug, Default)]
pub(super) struct SelfMount(Mutex<Known>);

#[derive(Debug, Clone, Copy, Default)]
enum Known {
    /// It was not tried.
    #[default]
    Nothing,
    /// It does.
    Works,
    /// It does not, or is being tried: not to be asked until then.
    Fails { until: Instant },
}

impl SelfMount {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn works(&self) -> bool {
        matches!(*self.known(), Known::Works)
    }

    /// Whether it has to be tried. Others need not try it meanwhile.
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

/// Uploads that were begun as their blobs were looked for, until these come. One that is not used is given up. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct WaitingUploads(Arc<Mutex<HashMap<Digest, Waiting>>>);

/// An upload that waits for its blob.
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

    /// The upload of a blob, unless it has waited for too long.
    pub(super) fn take(&self, blob: Digest) -> Option<(Upload, Begun)> {
        let Waiting { since, upload, begun } = self.uploads().remove(&blob)?;
        (since.elapsed() < LONGEST_WAIT).then_some((upload, begun))
    }
}

/// What a registry says of a blob whose upload it was asked to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has none: an upload waits for it.
    Begun,
    /// It has it.
    Whole,
    /// It has to be asked in another way.
    Unsaid,
}

impl RegistryStore {
    /// Looks for a blob by beginning its upload, if that is known to tell.
    pub(super) async fn look_by_upload(&self, stage: &Stage, repository: &str, blob: &Descriptor) -> Answer {
        if stage.waiting.has(blob.digest) {
            return Answer::Begun;
        }
        let is_doubted = stage.suspect || self.damaged.has(repository, blob.digest);
        let is_canonical = blob.digest.algorithm() == Algorithm::CANONICAL;
        if blob.size > WORTH_LENDING
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
                tracing::debug!(%error, blob = %blob.digest, "the registry can't be asked for the blob by an upload");
                if matches!(error, Error::Status { .. }) {
                    self.self_mount.failed(Instant::now());
                }
                Answer::Unsaid
            }
        }
    }

    /// The registry has said that it has a blob, and has none.
    pub(super) fn said_wrong(&self) {
        self.self_mount.failed(Instant::now());
    }

    /// Finds out by a blob that has just been sent whether the registry says so when it is asked to begin its upload. Once: it is not asked again
    /// for a while.
    pub(super) async fn try_self_mount(&self, repository: &str, blob: &Descriptor) {
        let is_canonical = blob.digest.algorithm() == Algorithm::CANONICAL;
        if blob.size > WORTH_LENDING || !is_canonical || !self.self_mount.begin_trial(Instant::now()) {
            return;
        }
        // An upload that was begun is given up with those that were dropped.
        match self.begin_unless_there(repository, blob.digest, None).await {
            Ok(None) => self.self_mount.proved(),
            Ok(Some(_)) => {}
            Err(error) => tracing::debug!(%error, "the registry does not mount a blob from where it is"),
        }
    }

    /// Begins the upload of a blob, unless the registry says that it has it.
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
