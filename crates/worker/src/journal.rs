//! The journal of a claim, kept in the database so that the next claim resumes after the worker died.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use db::{self, Db, Publication, ReadBlob};
use domain::{Digest, ImageId, ImageName, RegionId, Verification, with_causes};
use storage::{Error, Journal, Result, Witness};
use tokio::{sync::Mutex, time::Instant};

/// The interval at which written blobs are saved, in batches.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a call is retried while the database is unavailable, and the wait between two attempts.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_WAIT: Duration = Duration::from_millis(250);

/// The journal of a claim.
#[derive(Debug)]
pub struct ReplicaJournal {
    state: Db,
    image: ImageId,
    region: RegionId,
    fence: u64,
    /// The location of the image in the region's store, if the store has one.
    location: Option<String>,
    written: Mutex<Written>,
    /// The unfinished uploads by blob; `None` until those of earlier attempts are loaded.
    uploads: Mutex<Option<HashMap<Digest, String>>>,
}

/// The blobs that the copy has written and verified.
#[derive(Debug)]
struct Written {
    /// All blobs that were written; `None` until those of earlier attempts are loaded.
    blobs: Option<HashSet<Digest>>,
    /// The blobs that are not in the database yet.
    unsaved: BTreeSet<Digest>,
    saved_at: Instant,
}

impl ReplicaJournal {
    /// Creates the journal of the claim with `fence` on an image that the region's store has at `location`.
    pub fn new(state: Db, image: ImageId, region: RegionId, fence: u64, location: Option<String>) -> Self {
        let written = Written { blobs: None, unsaved: BTreeSet::new(), saved_at: Instant::now() };
        Self { state, image, region, fence, location, written: Mutex::new(written), uploads: Mutex::default() }
    }

    fn publication<'a>(&'a self, name: &'a ImageName, root: Digest) -> Publication<'a> {
        let Self { image, region, fence, location, .. } = self;
        Publication { image, region, fence: *fence, name, location: location.as_deref(), root }
    }

    fn at<'a>(&'a self, location: &'a str, blob: Digest) -> ReadBlob<'a> {
        ReadBlob { region: &self.region, location, blob }
    }

    async fn save_written(&self, written: &mut Written) -> Result<()> {
        let unsaved: Vec<Digest> = written.unsaved.iter().copied().collect();
        written.saved_at = Instant::now();
        match self.state.blobs_record_written(&self.image, &self.region, self.fence, &unsaved).await {
            Ok(Ok(())) => written.unsaved.clear(),
            Ok(Err(_)) => return Err(Error::Overtaken),
            // A later attempt verifies a blob that is not recorded, so this attempt need not fail.
            Err(error) => {
                let (image, region) = (&self.image, &self.region);
                tracing::warn!(error = with_causes(&error), %image, %region, "failed to save written blobs; will retry");
            }
        }
        Ok(())
    }
}

/// Retries a call while the database is unavailable, so that a copy that is almost complete does not fail because of
/// it.
async fn retry_while_unavailable<T, F: Future<Output = db::Result<T>>>(call: impl Fn() -> F) -> db::Result<T> {
    let deadline = Instant::now() + DATABASE_TIMEOUT;
    loop {
        match call().await {
            Err(error) if error.is_temporary() && Instant::now() < deadline => {
                tracing::debug!(error = with_causes(&error), "the database is unavailable; will retry");
                tokio::time::sleep(RETRY_WAIT).await;
            }
            result => return result,
        }
    }
}

#[allow(clippy::needless_pass_by_value)]
fn journal_error(error: db::Error) -> Error {
    Error::Journal(error.to_string())
}

#[async_trait]
impl Journal for ReplicaJournal {
    async fn hold(&self) -> Result<()> {
        let holds = self.state.replica_holds(&self.image, &self.region, self.fence).await.map_err(journal_error)?;
        if holds { Ok(()) } else { Err(Error::Overtaken) }
    }

    async fn upload(&self, blob: Digest) -> Result<Option<String>> {
        let mut uploads = self.uploads.lock().await;
        let uploads = match &mut *uploads {
            Some(uploads) => uploads,
            unloaded => unloaded.insert(self.state.uploads(&self.image, &self.region).await.map_err(journal_error)?),
        };
        Ok(uploads.get(&blob).cloned())
    }

    async fn note(&self, blob: Digest, session: &str) -> Result<()> {
        let mut uploads = self.uploads.lock().await;
        let result = self.state.upload_save(&self.image, &self.region, self.fence, blob, session).await;
        result.map_err(journal_error)?.map_err(|_| Error::Overtaken)?;
        if let Some(uploads) = &mut *uploads {
            uploads.insert(blob, session.to_owned());
        }
        Ok(())
    }

    async fn forget(&self, blob: Digest) -> Result<()> {
        let mut uploads = self.uploads.lock().await;
        self.state.upload_forget(&self.image, &self.region, blob).await.map_err(journal_error)?;
        if let Some(uploads) = &mut *uploads {
            uploads.remove(&blob);
        }
        Ok(())
    }

    async fn abandon(&self, session: &str) -> Result<()> {
        self.state.stray_upload_note(&self.region, session).await.map_err(journal_error)
    }

    async fn wrote(&self, blob: Digest) -> Result<bool> {
        let written = &mut *self.written.lock().await;
        let blobs = match &mut written.blobs {
            Some(blobs) => blobs,
            unloaded => {
                let mut earlier = self.state.blobs_written(&self.image, &self.region).await.map_err(journal_error)?;
                earlier.extend(&written.unsaved);
                unloaded.insert(earlier)
            }
        };
        Ok(blobs.contains(&blob))
    }

    async fn note_written(&self, blob: Digest) -> Result<()> {
        let written = &mut *self.written.lock().await;
        written.unsaved.insert(blob);
        if let Some(blobs) = &mut written.blobs {
            blobs.insert(blob);
        }
        if written.saved_at.elapsed() >= SAVE_INTERVAL { self.save_written(written).await } else { Ok(()) }
    }

    async fn save(&self) -> Result<()> {
        self.save_written(&mut *self.written.lock().await).await
    }

    async fn reading(&self, location: &str, blob: Digest) -> Result<Option<Witness>> {
        let read = self.state.blob_reading(self.at(location, blob)).await.map_err(journal_error)?;
        Ok(read.map(Witness))
    }

    async fn note_reading(&self, location: &str, blob: Digest, witness: &Witness) -> Result<()> {
        let result = self.state.blob_record_reading(self.at(location, blob), witness.0.as_deref()).await;
        result.map_err(journal_error)
    }

    async fn registry_habits(&self, service: &str) -> Result<Option<String>> {
        self.state.registry_habits(service).await.map_err(journal_error)
    }

    async fn note_registry_habits(&self, service: &str, habits: &str) -> Result<()> {
        self.state.registry_habits_save(service, habits).await.map_err(journal_error)
    }

    async fn begin_publishing(&self, name: &ImageName, root: Digest) -> Result<()> {
        let result = retry_while_unavailable(|| self.state.publication_announce(self.publication(name, root))).await;
        result.map_err(journal_error)?.map_err(|_| Error::Overtaken)
    }

    async fn note_published(&self, name: &ImageName, root: Digest, verification: Option<Verification>) -> Result<()> {
        match retry_while_unavailable(|| self.state.publication_complete(self.publication(name, root), verification))
            .await
        {
            // The image is visible even if the claim is stale. The copy's report is then stale too, and its handling
            // decides whether the image stays.
            Ok(_) => Ok(()),
            // The image is visible, and the announcement records its name as this service's own. A later copy checks
            // every part.
            Err(error) => {
                let (image, region) = (&self.image, &self.region);
                tracing::warn!(error = with_causes(&error), %image, %region, "failed to record the end of a publication; a later copy will check every part");
                Ok(())
            }
        }
    }
}
