//! Copies one image to all regions that are claimed for it: assigns a source to each region, renews the leases, and
//! reports each copy as soon as it ends. Regions that are claimed later for the same image join the job.

mod sources;
mod stage;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use domain::{Descriptor, Digest, Image, ImageId, RegionId, with_causes};
use futures_util::{StreamExt as _, stream};
use storage::{Error, Stores};
use tokio::{
    sync::mpsc,
    task::{self, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    Worker,
    active_copy::ActiveCopy,
    heartbeat::{Heartbeat, LeasedCopy},
    retract::retract_canceled,
    slots::Slot,
    transfer::{CopyError, CopySummary, Destination, Transfer},
};

/// How long aborting unfinished uploads may take in one region.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Key of a job. It contains the image's root too, because an id may be registered again with another root.
pub type JobKey = (ImageId, Digest);

/// Regions of one claim that join a job.
#[derive(Debug)]
pub struct JoinRequest {
    /// One copy per claimed region.
    pub copies: Vec<ActiveCopy>,
    /// The regions in which the image is AVAILABLE.
    pub available: Vec<RegionId>,
}

/// The copy to one region of the job.
#[derive(Debug)]
struct RegionCopy {
    active: ActiveCopy,
    destination: Destination,
    /// The slot at the source and the task of the transfer; `None` while the copy waits for a source.
    transfer: Option<(Slot, task::Id)>,
}

/// The copies of one image.
#[derive(Debug)]
pub struct CopyJob {
    worker: Worker,
    stores: Stores,
    image: Image,
    root: Descriptor,
    /// The regions that have the image and a configured store, the home region first.
    sources: Vec<RegionId>,
    /// Error of a source that failed. The home region's error takes precedence.
    source_failure: Option<CopyError>,
    /// The unfinished copies.
    copies: BTreeMap<RegionId, RegionCopy>,
    /// The transfer from each source.
    transfers: BTreeMap<RegionId, Arc<Transfer>>,
    tasks: JoinSet<Result<CopySummary, CopyError>>,
    /// The tasks that withdraw the images of canceled copies.
    retractions: JoinSet<()>,
    /// Every region that the job has written to.
    written_regions: BTreeSet<RegionId>,
    join_requests: mpsc::Receiver<JoinRequest>,
}

/// The result of a copy's task.
type TaskResult = Result<(task::Id, Result<CopySummary, CopyError>), task::JoinError>;

impl CopyJob {
    /// Creates a job without regions. The first regions are passed to [`CopyJob::run`]; others arrive through the
    /// channel.
    pub fn new(
        worker: Worker,
        stores: Stores,
        image: Image,
        root: Descriptor,
        join_requests: mpsc::Receiver<JoinRequest>,
    ) -> Self {
        Self {
            worker,
            stores,
            image,
            root,
            sources: Vec::new(),
            source_failure: None,
            copies: BTreeMap::new(),
            transfers: BTreeMap::new(),
            tasks: JoinSet::new(),
            retractions: JoinSet::new(),
            written_regions: BTreeSet::new(),
            join_requests,
        }
    }

    /// Copies the image until every copy has ended or `stop` is canceled, and then releases the remaining claims.
    pub async fn run(mut self, first: JoinRequest, stop: CancellationToken) -> JobKey {
        let settings = Arc::clone(&self.worker.settings);
        let mut heartbeat = Heartbeat::new(self.image.id.clone(), settings.lease, settings.heartbeat);
        self.join(first).await;
        loop {
            self.start_transfers().await;
            if self.copies.is_empty() {
                // A request that is already in the channel still joins; later ones get their own job.
                self.join_requests.close();
                let Ok(request) = self.join_requests.try_recv() else { break };
                self.join(request).await;
                continue;
            }
            let leased: Vec<LeasedCopy> = self.copies.values().map(|copy| copy.active.lease()).collect();
            tokio::select! {
                Some(result) = self.tasks.join_next_with_id() => self.handle_task_result(result).await,
                lost = heartbeat.beat(&self.worker.state, &leased) => self.drop_lost_claims(lost),
                Some(request) = self.join_requests.recv() => self.join(request).await,
                () = self.worker.limits.freed() => {}
                () = stop.cancelled() => break,
            }
        }
        self.release().await;
        self.finish_retractions().await;
        self.abort_uploads().await;
        (self.image.id, self.root.digest)
    }

    /// Stops the unfinished copies and releases their claims. The tasks end first, because they must not write without
    /// a claim.
    async fn release(&mut self) {
        self.join_requests.close();
        while let Ok(request) = self.join_requests.try_recv() {
            self.join(request).await;
        }
        for copy in self.copies.values() {
            copy.active.lost.cancel();
        }
        self.tasks.shutdown().await;
        let mut released = Vec::with_capacity(self.copies.len());
        for (region, RegionCopy { active, destination, .. }) in std::mem::take(&mut self.copies) {
            // The next claim need not verify blobs that are recorded as written.
            if let Err(error) = destination.stage.journal.save().await {
                tracing::debug!(%error, %region, "failed to save written blobs; the next claim verifies them again");
            }
            released.push(active);
        }
        self.worker.release(&self.image.id, released).await;
    }

    /// Waits for the retractions, for [`ABORT_TIMEOUT`] at most.
    async fn finish_retractions(&mut self) {
        let all = async { while self.retractions.join_next().await.is_some() {} };
        if tokio::time::timeout(ABORT_TIMEOUT, all).await.is_err() {
            tracing::warn!(image = %self.image.id, "failed to withdraw canceled images in time");
        }
    }

    /// Aborts the unfinished uploads of this job in every region, concurrently and with a deadline for each.
    async fn abort_uploads(&self) {
        let stores = self.stores.iter().filter(|(region, _)| self.written_regions.contains(*region));
        let aborts = stream::iter(stores).for_each_concurrent(None, |(region, store)| async move {
            if tokio::time::timeout(ABORT_TIMEOUT, store.abort_unfinished()).await.is_err() {
                tracing::warn!(%region, "failed to abort unfinished uploads in time; maintenance will retry");
            }
        });
        aborts.await;
    }

    async fn join(&mut self, request: JoinRequest) {
        for source in std::iter::once(self.image.home.clone()).chain(request.available) {
            // A region that is not configured here can't be read.
            if self.stores.get(&source).is_some() && !self.sources.contains(&source) {
                self.sources.push(source);
            }
        }
        let mut published = self.load_published(&request.copies).await;
        for active in request.copies {
            let region = active.claimed.region.clone();
            let Some(store) = self.stores.get(&region).cloned() else { continue };
            // A new claim of a region supersedes the one that the job still holds.
            self.drop_lost_claims(vec![region.clone()]);
            let published = published.remove(&region).unwrap_or_default();
            let destination = self.new_destination(&active, store, published);
            self.written_regions.insert(region.clone());
            self.copies.insert(region, RegionCopy { active, destination, transfer: None });
        }
    }

    async fn handle_task_result(&mut self, result: TaskResult) {
        let (id, result) = match result {
            Ok((id, result)) => (id, result),
            Err(error) => {
                tracing::error!(%error, image = %self.image.id, "copy task panicked; will retry");
                (error.id(), Err(Error::Interrupted.into()))
            }
        };
        let has_task = |copy: &RegionCopy| copy.transfer.as_ref().is_some_and(|(_, task)| *task == id);
        // A copy whose claim was lost meanwhile is not in the map.
        let region = self.copies.iter().find(|(_, copy)| has_task(copy)).map(|(region, _)| region.clone());
        if let Some(region) = region {
            self.finish_copy(region, result).await;
        }
    }

    /// Reports the result of a copy. If the source failed and another one is left, the copy waits for the other one.
    async fn finish_copy(&mut self, region: RegionId, result: Result<CopySummary, CopyError>) {
        if let Err(failure @ CopyError::Source { region: source, error, .. }) = &result
            && self.sources.contains(source)
        {
            tracing::warn!(
                image = %self.image.id, %source, %region, error = with_causes(&**error),
                "source failed; trying another region"
            );
            if *source == self.image.home || self.source_failure.is_none() {
                self.source_failure = Some(failure.clone());
            }
            self.sources.retain(|other| other != source);
            self.transfers.remove(source);
        }
        if let Err(CopyError::Source { .. }) = &result
            && !self.sources.is_empty()
        {
            if let Some(copy) = self.copies.get_mut(&region) {
                copy.transfer = None;
            }
            return;
        }
        let Some(copy) = self.copies.remove(&region) else { return };
        let result = match result {
            Err(CopyError::Source { .. }) => Err(self.source_error()),
            result => result,
        };
        if result.is_ok() {
            self.sources.push(region.clone());
        }
        let RegionCopy { active, destination, .. } = copy;
        // A copy whose report is stale may have published the image before it noticed its cancellation.
        if !self.worker.conclude(&self.image.id, active, result).await {
            self.retract(region, destination);
        }
    }

    /// Withdraws a canceled copy in a separate task, because a store that hangs must not delay other regions.
    fn retract(&mut self, region: RegionId, destination: Destination) {
        let Destination { store, stage, .. } = destination;
        self.retractions.spawn(retract_canceled(
            self.worker.state.clone(),
            self.image.id.clone(),
            region,
            store,
            stage,
        ));
    }

    fn drop_lost_claims(&mut self, lost: Vec<RegionId>) {
        for region in lost {
            if let Some(RegionCopy { active, destination, .. }) = self.copies.remove(&region) {
                active.lose(&self.image.id);
                // The copy may have published the image just before its report.
                self.retract(region, destination);
            }
        }
    }
}
