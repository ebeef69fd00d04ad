//! Copies between regions of ECS: requests the provider's own copy and polls it until it is available.
//!
//! The state of a copy is recorded in the database before ECS is called, so that the next owner of the claim resumes
//! the same copy.

mod abandoned;
mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::{EcsImageId, Image, RegionId, Verification};
use storage::{Ecs, Error, Result};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use abandoned::abandon;

use self::watch::Watch;
use super::{
    Worker,
    active_copy::ActiveCopy,
    heartbeat::Heartbeat,
    transfer::{CopyError, CopySummary},
};

/// How long a shutdown waits for requests to ECS that are in flight.
const LAST_STEP: Duration = Duration::from_secs(3);

/// The ECS copies of one image to the regions of a claim.
#[derive(Debug)]
pub struct EcsJob {
    worker: Worker,
    ecs: Ecs,
    image: Arc<Image>,
    source: EcsImageId,
    copies: BTreeMap<RegionId, RegionCopy>,
    watches: JoinSet<(RegionId, Result<()>)>,
}

/// The result of a watch's task.
type TaskResult = std::result::Result<(RegionId, Result<()>), task::JoinError>;

/// The copy to one region of the job.
#[derive(Debug)]
struct RegionCopy {
    active: ActiveCopy,
    watch: task::Id,
}

impl EcsJob {
    /// Creates a job for an image that is the ECS image `source` in the home region.
    pub fn new(worker: Worker, ecs: Ecs, image: Image, source: EcsImageId) -> Self {
        let image = Arc::new(image);
        Self { worker, ecs, image, source, copies: BTreeMap::new(), watches: JoinSet::new() }
    }

    /// Copies the image until every copy has ended or `stop` is canceled, and then releases the remaining claims.
    pub async fn run(mut self, regions: Vec<ActiveCopy>, stop: CancellationToken) {
        for active in regions {
            self.watch(active, &stop);
        }
        let settings = Arc::clone(&self.worker.settings);
        let mut heartbeat = Heartbeat::new(self.image.id.clone(), settings.lease, settings.heartbeat);
        while !self.watches.is_empty() {
            let leased: Vec<_> = self.copies.values().map(|copy| copy.active.lease()).collect();
            tokio::select! {
                Some(result) = self.watches.join_next() => self.handle_task_result(result).await,
                lost = heartbeat.beat(&self.worker.state, &leased), if !leased.is_empty() => self.drop_lost_claims(lost),
                () = stop.cancelled() => break,
            }
        }
        // Requests in flight are finished first: the response of ECS must be recorded.
        let rest = async {
            while let Some(result) = self.watches.join_next().await {
                self.handle_task_result(result).await;
            }
        };
        if tokio::time::timeout(LAST_STEP, rest).await.is_err() {
            self.watches.shutdown().await;
        }
        let rest = std::mem::take(&mut self.copies).into_values().map(|copy| copy.active).collect();
        self.worker.release(&self.image.id, rest).await;
    }

    fn watch(&mut self, active: ActiveCopy, stop: &CancellationToken) {
        active.span.record("appferry.source_region_id", self.image.home.as_str());
        let region = active.claimed.region.clone();
        let watch = Watch {
            state: self.worker.state.clone(),
            ecs: self.ecs.clone(),
            image: Arc::clone(&self.image),
            source: self.source.clone(),
            region: region.clone(),
            fence: active.claimed.fence,
            meter: Arc::clone(&active.meter),
            lost: active.lost.clone(),
            stop: stop.clone(),
        };
        let watched_region = region.clone();
        let watch = async move { (watched_region, watch.run().await) }.instrument(active.span.clone());
        let watch = self.watches.spawn(watch).id();
        self.copies.insert(region, RegionCopy { active, watch });
    }

    /// Reports the result of a watch. If `stop` interrupted the watch, its claim is released later, with the others.
    async fn handle_task_result(&mut self, result: TaskResult) {
        match result {
            Ok((_, Err(Error::Interrupted))) => {}
            Ok((region, result)) => self.conclude(&region, result).await,
            Err(error) => {
                tracing::error!(%error, image = %self.image.id, "copy task panicked; will retry");
                let region = self.copies.iter().find(|(_, copy)| copy.watch == error.id());
                if let Some(region) = region.map(|(region, _)| region.clone()) {
                    self.conclude(&region, Err(Error::Interrupted)).await;
                }
            }
        }
    }

    async fn conclude(&mut self, region: &RegionId, result: Result<()>) {
        let Some(RegionCopy { active, .. }) = self.copies.remove(region) else { return };
        // The bytes of an ECS image can't be read, so the copy is trusted.
        let result = result.map(|()| CopySummary::from(Verification::Trusted)).map_err(|error| match error {
            Error::Ecs(error) if error.is_source_missing() => CopyError::Source {
                region: self.image.home.clone(),
                error: Arc::new(Error::Ecs(error)),
                is_remote: false,
            },
            error => CopyError::Destination(Arc::new(error)),
        });
        self.worker.conclude(&self.image.id, active, result).await;
    }

    fn drop_lost_claims(&mut self, lost: Vec<RegionId>) {
        for region in lost {
            if let Some(RegionCopy { active, .. }) = self.copies.remove(&region) {
                active.lose(&self.image.id);
            }
        }
    }
}
