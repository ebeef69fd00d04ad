//! The loop that claims, and the jobs that it starts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    active_copy::ActiveCopy,
    copy_job::{CopyJob, JobKey, Joining},
    ecs::EcsJob,
    lanes::Lanes,
    reporting::failed,
    slots::Limits,
};
use crate::{
    db::{self, Claim, ClaimRequest, Db, LaneCapacity},
    domain::{Content, Descriptor, EcsImageId, Fault, FaultKind, Image, RegionId, relay::Topology, with_causes},
    region::{Backend, Ecs, Stores},
};

/// How long to wait before asking a database again that did not answer.
const DATABASE_WAIT: Duration = Duration::from_millis(500);

/// Claims that may wait for a job to take them.
const JOINING: usize = 64;

/// How an image is copied.
enum Way {
    /// From one store to the others, blob by blob.
    Blobs(Stores, Descriptor),
    /// By ECS, which knows it by that id.
    Ecs(Ecs, EcsImageId),
}

/// Copies images to the regions that it serves.
#[derive(Debug, Clone)]
pub struct Worker {
    pub(super) state: Db,
    pub(super) backend: Backend,
    pub(super) settings: Arc<Settings>,
    pub(super) limits: Limits,
    lanes: Lanes,
}

/// What a worker is doing.
#[derive(Default)]
struct Jobs {
    tasks: JoinSet<Option<JobKey>>,
    /// The images that are being copied, and where regions that are claimed for them join.
    joining: HashMap<JobKey, mpsc::Sender<Joining>>,
}

impl Worker {
    /// A worker on a database and what keeps the images.
    #[must_use]
    pub fn new(state: Db, backend: Backend, topology: Topology, settings: Settings) -> Self {
        let lanes = Lanes::new(&settings.regions, settings.concurrency);
        Self { state, backend, settings: Arc::new(settings), limits: Limits::new(topology), lanes }
    }

    /// Works until `stop` is canceled; then hands back what it holds and returns.
    pub async fn run(self, stop: CancellationToken) {
        let follow = self.limits.clone().follow(self.state.clone(), self.settings.id.clone(), stop.clone());
        let follow = tokio::spawn(follow);
        let mut jobs = Jobs::default();
        let mut seen = 0;
        while !stop.is_cancelled() {
            // Not all at once, where many look by themselves.
            let mut wait = self.settings.poll.mul_f64(1.0 - rand::random::<f64>() / 4.0);
            let free = self.lanes.free();
            let is_free = free.values().any(|lane| lane.primary > 0);
            if is_free {
                match self.claim(&free).await {
                    Ok(claims) if !claims.is_empty() => {
                        for claim in claims {
                            self.begin(claim, &mut jobs, &stop);
                        }
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(error = with_causes(&error), "failed to claim; will retry");
                        wait = DATABASE_WAIT;
                    }
                }
            }
            tokio::select! {
                () = self.state.due(&mut seen, wait), if is_free => {}
                () = self.lanes.freed() => {}
                Some(ended) = jobs.tasks.join_next() => jobs.ended(ended),
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = jobs.tasks.join_next().await {
            jobs.ended(ended);
        }
        if let Err(error) = follow.await {
            tracing::error!(%error, "the task that shares bandwidth between processes panicked");
        }
    }

    async fn claim(&self, lanes: &BTreeMap<RegionId, LaneCapacity>) -> db::Result<Vec<Claim>> {
        let Settings { id, lease, .. } = &*self.settings;
        let limits = self.limits.copies_into();
        let draw = rand::random_range(0..usize::MAX);
        self.state.replica_claim(ClaimRequest { owner: id, lanes, lease: *lease, limits, draw }).await
    }

    /// Begins with what was claimed of an image, or joins the job that copies it already.
    fn begin(&self, claim: Claim, jobs: &mut Jobs, stop: &CancellationToken) {
        let (image, way) = match self.way(claim.image.clone()) {
            Ok(found) => found,
            Err(reason) => {
                jobs.tasks.spawn(self.clone().refuse(claim, reason));
                return;
            }
        };
        let regions = claim.regions.into_iter().map(|region| {
            let lane = self.lanes.enter(&region.region);
            ActiveCopy::new(&image, region, lane)
        });
        let copies: Vec<ActiveCopy> = regions.collect();
        match way {
            Way::Ecs(ecs, source) => {
                let (job, stop) = (EcsJob::new(self.clone(), ecs, image, source), stop.clone());
                jobs.tasks.spawn(async move {
                    job.run(copies, stop).await;
                    None
                });
            }
            Way::Blobs(stores, root) => {
                let key = (image.id.clone(), root.digest);
                let Some(joining) = jobs.join(&key, Joining { copies, available: claim.available }) else { return };
                let (sender, receiver) = mpsc::channel(JOINING);
                let job = CopyJob::new(self.clone(), stores, image, root, receiver);
                jobs.joining.insert(key, sender);
                jobs.tasks.spawn({
                    let stop = stop.clone();
                    async move { Some(job.run(joining, stop).await) }
                });
            }
        }
    }

    /// Reports that what was claimed can't be copied.
    async fn refuse(self, claim: Claim, reason: String) -> Option<JobKey> {
        let fault = Fault::new(FaultKind::ImageNotFound, reason);
        for region in &claim.regions {
            self.report(&claim.id, failed(region, &Arc::default(), fault.clone(), None)).await;
        }
        None
    }

    /// How an image is copied; if it can't be, why.
    fn way(&self, image: Option<Image>) -> Result<(Image, Way), String> {
        let image = image.ok_or("the image was removed")?;
        if let Some(by) = &image.superseded_by {
            return Err(format!("it was superseded by {by}, which has its name now"));
        }
        let way = match (&self.backend, &image.content) {
            (Backend::Stores(stores), Content::Blobs(root)) => Way::Blobs(stores.clone(), root.clone()),
            (Backend::Ecs(ecs), Content::Ecs) if ecs.has(&image.home) => Way::Ecs(ecs.clone(), image.source.0.parse()?),
            (Backend::Ecs(_), Content::Ecs) => {
                return Err(format!("its home region {} is no longer configured", image.home));
            }
            (Backend::Stores(_), Content::Ecs) => return Err("it is of ECS, and the regions no longer are".to_owned()),
            (Backend::Ecs(_), Content::Blobs(_)) => return Err("the regions are of ECS now, and it is not".to_owned()),
        };
        Ok((image, way))
    }
}

impl Jobs {
    /// Hands regions to the job of their image. They come back if there is none that takes them.
    fn join(&self, key: &JobKey, joining: Joining) -> Option<Joining> {
        let Some(job) = self.joining.get(key) else { return Some(joining) };
        match job.try_send(joining) {
            Ok(()) => None,
            Err(TrySendError::Full(joining) | TrySendError::Closed(joining)) => Some(joining),
        }
    }

    fn ended(&mut self, ended: Result<Option<JobKey>, JoinError>) {
        match ended {
            // Another job of the same image may have begun since.
            Ok(Some(key)) if self.joining.get(&key).is_some_and(mpsc::Sender::is_closed) => {
                self.joining.remove(&key);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "copy job panicked; its leases will expire");
                self.joining.retain(|_, job| !job.is_closed());
            }
        }
    }
}
