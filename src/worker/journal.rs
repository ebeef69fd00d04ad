//! What a claim remembers beyond its worker, in the database.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    db::{self, Db, Publication, ReadBlob},
    domain::{Digest, ImageId, ImageName, RegionId, Verification, with_causes},
    region::{Error, Journal, Result, Witness},
};

/// How long blobs that were written wait to be remembered together.
const GATHER: Duration = Duration::from_secs(1);

/// How long a database that does not answer is waited for, and how long until it is asked again.
const DATABASE_PATIENCE: Duration = Duration::from_secs(10);
const DATABASE_WAIT: Duration = Duration::from_millis(250);

/// The journal of one claim.
#[derive(Debug)]
pub struct ReplicaJournal {
    state: Db,
    image: ImageId,
    region: RegionId,
    fence: u64,
    /// Where the region's store has the image, if it says so.
    location: Option<String>,
    written: Mutex<Written>,
    /// The uploads that were begun and not ended; nothing until it was asked for those of earlier attempts.
    uploads: Mutex<Option<HashMap<Digest, String>>>,
}

/// The blobs that the copy has written.
#[derive(Debug)]
struct Written {
    /// All of them; nothing until it was asked for what earlier attempts wrote.
    known: Option<HashSet<Digest>>,
    /// Those that the database does not know yet.
    unsaved: BTreeSet<Digest>,
    saved_at: Instant,
}

impl ReplicaJournal {
    /// The journal of the claim with that fence, on an image that the region's store has at `location`.
    pub fn new(state: Db, image: ImageId, region: RegionId, fence: u64, location: Option<String>) -> Self {
        let written = Written { known: None, unsaved: BTreeSet::new(), saved_at: Instant::now() };
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
            // What is not remembered is looked at again by a later attempt: no reason to fail this one.
            Err(error) => {
                let (image, region) = (&self.image, &self.region);
                tracing::warn!(error = with_causes(&error), %image, %region, "written blobs could not be saved; will retry");
            }
        }
        Ok(())
    }
}

/// Asks the database again while it does not answer, for a while: a copy that has come so far is not to be tried again for that.
async fn patiently<T, F: Future<Output = db::Result<T>>>(ask: impl Fn() -> F) -> db::Result<T> {
    let deadline = Instant::now() + DATABASE_PATIENCE;
    loop {
        match ask().await {
            Err(error) if error.is_temporary() && Instant::now() < deadline => {
                tracing::debug!(error = with_causes(&error), "the database does not answer; will retry");
                tokio::time::sleep(DATABASE_WAIT).await;
            }
            answer => return answer,
        }
    }
}

#[allow(clippy::needless_pass_by_value)]
fn failed(error: db::Error) -> Error {
    Error::Journal(error.to_string())
}

#[async_trait]
impl Journal for ReplicaJournal {
    async fn hold(&self) -> Result<()> {
        let holds = self.state.replica_holds(&self.image, &self.region, self.fence).await.map_err(failed)?;
        if holds { Ok(()) } else { Err(Error::Overtaken) }
    }

    async fn upload(&self, blob: Digest) -> Result<Option<String>> {
        let mut uploads = self.uploads.lock().await;
        let uploads = match &mut *uploads {
            Some(uploads) => uploads,
            unknown => unknown.insert(self.state.uploads(&self.image, &self.region).await.map_err(failed)?),
        };
        Ok(uploads.get(&blob).cloned())
    }

    async fn note(&self, blob: Digest, session: &str) -> Result<()> {
        let mut uploads = self.uploads.lock().await;
        let noted = self.state.upload_save(&self.image, &self.region, self.fence, blob, session).await;
        noted.map_err(failed)?.map_err(|_| Error::Overtaken)?;
        if let Some(uploads) = &mut *uploads {
            uploads.insert(blob, session.to_owned());
        }
        Ok(())
    }

    async fn forget(&self, blob: Digest) -> Result<()> {
        let mut uploads = self.uploads.lock().await;
        self.state.upload_forget(&self.image, &self.region, blob).await.map_err(failed)?;
        if let Some(uploads) = &mut *uploads {
            uploads.remove(&blob);
        }
        Ok(())
    }

    async fn wrote(&self, blob: Digest) -> Result<bool> {
        let written = &mut *self.written.lock().await;
        let known = match &mut written.known {
            Some(known) => known,
            unknown => {
                let mut earlier = self.state.blobs_written(&self.image, &self.region).await.map_err(failed)?;
                earlier.extend(&written.unsaved);
                unknown.insert(earlier)
            }
        };
        Ok(known.contains(&blob))
    }

    async fn note_written(&self, blob: Digest) -> Result<()> {
        let written = &mut *self.written.lock().await;
        written.unsaved.insert(blob);
        if let Some(known) = &mut written.known {
            known.insert(blob);
        }
        if written.saved_at.elapsed() >= GATHER { self.save_written(written).await } else { Ok(()) }
    }

    async fn save(&self) -> Result<()> {
        self.save_written(&mut *self.written.lock().await).await
    }

    async fn reading(&self, location: &str, blob: Digest) -> Result<Option<Witness>> {
        let read = self.state.blob_reading(self.at(location, blob)).await.map_err(failed)?;
        Ok(read.map(Witness))
    }

    async fn note_reading(&self, location: &str, blob: Digest, witness: &Witness) -> Result<()> {
        let noted = self.state.blob_record_reading(self.at(location, blob), witness.0.as_deref()).await;
        noted.map_err(failed)
    }

    async fn registry_habits(&self, service: &str) -> Result<Option<String>> {
        self.state.registry_habits(service).await.map_err(failed)
    }

    async fn note_registry_habits(&self, service: &str, habits: &str) -> Result<()> {
        self.state.registry_habits_save(service, habits).await.map_err(failed)
    }

    async fn begin_publishing(&self, name: &ImageName, root: Digest) -> Result<()> {
        let begun = patiently(|| self.state.publication_announce(self.publication(name, root))).await;
        begun.map_err(failed)?.map_err(|_| Error::Overtaken)
    }

    async fn note_published(&self, name: &ImageName, root: Digest, verification: Verification) -> Result<()> {
        match patiently(|| self.state.publication_complete(self.publication(name, root), verification)).await {
            // The image is visible all the same: what becomes of it is decided by the report, which comes too late as well.
            Ok(_) => Ok(()),
            // The image is there, and its name is known to be this service's own. A later copy looks for every part again.
            Err(error) => {
                let (image, region) = (&self.image, &self.region);
                tracing::warn!(error = with_causes(&error), %image, %region, "the publication could not be confirmed");
                Ok(())
            }
        }
    }
}
