//! The worker's loop: claims due replicas and starts or joins the jobs that copy them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use db::{self, Claim, ClaimRequest, Db, LaneCapacity};
use domain::{Content, Descriptor, EcsImageId, Fault, FaultKind, Image, RegionId, relay::Topology, with_causes};
use storage::{Backend, Ecs, Stores};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    active_copy::ActiveCopy,
    copy_job::{CopyJob, JobKey, JoinRequest},
    ecs::EcsJob,
    lanes::Lanes,
    reporting::failure_report,
    slots::Limits,
};

/// The wait before claiming is retried after an error of the database.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// The capacity of a job's queue of join requests.
const JOIN_QUEUE: usize = 64;

/// How an image is copied.
enum CopyMethod {
    /// Between stores, blob by blob.
    Blobs(Stores, Descriptor),
    /// By ECS, which knows the image by that id.
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

/// The running jobs.
#[derive(Default)]
struct Jobs {
    tasks: JoinSet<Option<JobKey>>,
    /// The join queue of each image's job.
    queues: HashMap<JobKey, mpsc::Sender<JoinRequest>>,
}

impl Worker {
    /// Creates a worker on a database and its regions.
    #[must_use]
    pub fn new(state: Db, backend: Backend, topology: Topology, settings: Settings) -> Self {
        let lanes = Lanes::new(&settings.regions, settings.concurrency);
        Self { state, backend, settings: Arc::new(settings), limits: Limits::new(topology), lanes }
    }

    /// Claims and copies until `stop` is canceled, and then releases its claims and returns.
    pub async fn run(self, stop: CancellationToken) {
        let shares = self.limits.clone().track_shares(self.state.clone(), self.settings.id.clone(), stop.clone());
        let shares = tokio::spawn(shares);
        let mut jobs = Jobs::default();
        let mut seen = 0;
        while !stop.is_cancelled() {
            // Jittered, so that workers do not poll at the same time.
            let mut wait = self.settings.poll.mul_f64(1.0 - rand::random::<f64>() / 4.0);
            let free = self.lanes.free();
            let is_free = free.values().any(|lane| lane.primary > 0);
            if is_free {
                match self.claim(&free).await {
                    Ok(claims) if !claims.is_empty() => {
                        for claim in claims {
                            self.start(claim, &mut jobs, &stop);
                        }
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(error = with_causes(&error), "failed to claim replicas; will retry");
                        wait = RETRY_WAIT;
                    }
                }
            }
            tokio::select! {
                () = self.state.due(&mut seen, wait), if is_free => {}
                () = self.lanes.freed() => {}
                Some(result) = jobs.tasks.join_next() => jobs.remove(result),
                () = stop.cancelled() => {}
            }
        }
        while let Some(result) = jobs.tasks.join_next().await {
            jobs.remove(result);
        }
        if let Err(error) = shares.await {
            tracing::error!(%error, "the task that shares bandwidth between processes panicked");
        }
    }

    async fn claim(&self, lanes: &BTreeMap<RegionId, LaneCapacity>) -> db::Result<Vec<Claim>> {
        let Settings { id, lease, .. } = &*self.settings;
        let limits = self.limits.copies_into();
        let draw = rand::random_range(0..usize::MAX);
        self.state.replica_claim(ClaimRequest { owner: id, lanes, lease: *lease, limits, draw }).await
    }

    /// Starts a job for a claim, or adds its regions to the running job of the same image.
    fn start(&self, claim: Claim, jobs: &mut Jobs, stop: &CancellationToken) {
        let (image, method) = match self.copy_method(claim.image.clone()) {
            Ok(method) => method,
            Err(reason) => {
                jobs.tasks.spawn(self.clone().report_uncopyable(claim, reason));
                return;
            }
        };
        let regions = claim.regions.into_iter().map(|region| {
            let lane = self.lanes.occupy(&region.region);
            ActiveCopy::new(&image, region, lane)
        });
        let copies: Vec<ActiveCopy> = regions.collect();
        match method {
            CopyMethod::Ecs(ecs, source) => {
                let (job, stop) = (EcsJob::new(self.clone(), ecs, image, source), stop.clone());
                jobs.tasks.spawn(async move {
                    job.run(copies, stop).await;
                    None
                });
            }
            CopyMethod::Blobs(stores, root) => {
                let key = (image.id.clone(), root.digest);
                let request = JoinRequest { copies, available: claim.available };
                let Err(request) = jobs.join(&key, request) else { return };
                let (queue, join_requests) = mpsc::channel(JOIN_QUEUE);
                let job = CopyJob::new(self.clone(), stores, image, root, join_requests);
                jobs.queues.insert(key, queue);
                jobs.tasks.spawn({
                    let stop = stop.clone();
                    async move { Some(job.run(request, stop).await) }
                });
            }
        }
    }

    /// Reports a permanent failure for every region of a claim.
    async fn report_uncopyable(self, claim: Claim, reason: String) -> Option<JobKey> {
        let fault = Fault::new(FaultKind::ImageNotFound, reason);
        for region in &claim.regions {
            self.report(&claim.id, failure_report(region, &Arc::default(), fault.clone(), None)).await;
        }
        None
    }

    /// Returns how an image is copied, or the reason why it can't be copied.
    fn copy_method(&self, image: Option<Image>) -> Result<(Image, CopyMethod), String> {
        let image = image.ok_or("the image was removed")?;
        if let Some(by) = &image.superseded_by {
            return Err(format!("the image was superseded by {by}, which has its name now"));
        }
        let method = match (&self.backend, &image.content) {
            (Backend::Stores(stores), Content::Blobs(root)) => CopyMethod::Blobs(stores.clone(), root.clone()),
            (Backend::Ecs(ecs), Content::Ecs) if ecs.has(&image.home) => {
                CopyMethod::Ecs(ecs.clone(), image.source.0.parse()?)
            }
            (Backend::Ecs(_), Content::Ecs) => {
                return Err(format!("the image's home region {} is no longer configured", image.home));
            }
            (Backend::Stores(_), Content::Ecs) => {
                return Err("the image is an ECS image, and the configured regions are not of ECS".to_owned());
            }
            (Backend::Ecs(_), Content::Blobs(_)) => {
                return Err("the configured regions are of ECS, and the image is not an ECS image".to_owned());
            }
        };
        Ok((image, method))
    }
}

impl Jobs {
    /// Sends regions to the running job of their image. Returns them if there is none, or if it is full or ending.
    fn join(&self, key: &JobKey, request: JoinRequest) -> Result<(), JoinRequest> {
        let Some(queue) = self.queues.get(key) else { return Err(request) };
        queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) | TrySendError::Closed(request) => request,
        })
    }

    /// Removes a job that has ended.
    fn remove(&mut self, result: Result<Option<JobKey>, JoinError>) {
        match result {
            // A new job of the same image may have replaced the queue.
            Ok(Some(key)) if self.queues.get(&key).is_some_and(mpsc::Sender::is_closed) => {
                self.queues.remove(&key);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "copy job panicked; its leases will expire");
                self.queues.retain(|_, queue| !queue.is_closed());
            }
        }
    }
}
