//! What one process at a time does for all, elected by a lease: copies whose worker has died are requeued, synchronizations that ended long
//! ago are pruned, and uploads and copies of ECS that are abandoned are aborted.
//!
//! The parts run side by side, each with a deadline, and one region's with no other's: a store that does not answer delays nothing but
//! what is to be done there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::Mutex,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    ecs::give_up,
    leftovers::LeftoverSweep,
    region_check::{RegionCheck, record_configured},
};
use crate::{
    db::{self, Db},
    domain::{RegionId, WorkerId, with_causes},
    metrics,
    region::{Backend, Ecs, Store},
};

/// How long the leader's lease lasts without being renewed, as a multiple of the interval.
const LEASE: u32 = 3;
/// How long one part of a round may take.
const PART: Duration = Duration::from_secs(90);
/// How long a store may take to abort one upload.
const ABORT: Duration = Duration::from_secs(10);

/// How maintenance is done.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The process's name.
    pub id: WorkerId,
    /// How often.
    pub interval: Duration,
    /// How long synchronizations are kept after they have ended.
    pub keep: Duration,
    /// The store of each configured region, as it may be shown.
    pub locations: Vec<(RegionId, String)>,
    /// How long leases last.
    pub lease: Duration,
    /// The longest wait before an attempt is repeated.
    pub longest_wait: Duration,
}

/// Does the maintenance while this process is the leader.
#[derive(Debug, Clone)]
pub struct Maintenance {
    state: Db,
    backend: Backend,
    settings: Settings,
    leftovers: LeftoverSweep,
    regions: Arc<Mutex<RegionCheck>>,
}

/// One part of a round.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    MeasureQueues,
    Requeue,
    Prune,
    PruneNonces,
    AbortUploads(RegionId),
    CheckRegions,
    ClearLeftovers,
    AbandonEcsCopies,
}

/// The parts that are running.
#[derive(Default)]
struct Round {
    tasks: JoinSet<()>,
    running: BTreeMap<Part, Id>,
}

impl Maintenance {
    /// The maintenance of a database and of what keeps the images.
    #[must_use]
    pub fn new(state: Db, backend: Backend, settings: Settings) -> Self {
        let Settings { locations, interval, .. } = &settings;
        let regions = RegionCheck::new(state.clone(), backend.clone(), locations.clone(), *interval);
        let regions = Arc::new(Mutex::new(regions));
        Self { state, backend, settings, leftovers: LeftoverSweep::default(), regions }
    }

    /// Does the maintenance whenever this process is the leader, until `stop` is canceled.
    pub async fn run(self, stop: CancellationToken) {
        let Settings { id, interval, .. } = &self.settings;
        let mut leads = false;
        let mut round = Round::default();
        while !stop.is_cancelled() {
            record_configured(&self.state, *interval).await;
            match self.state.leader_acquire(id, *interval * LEASE).await {
                Ok(elected) => {
                    if elected && !leads {
                        tracing::info!(%id, "elected leader");
                    }
                    if leads && !elected {
                        tracing::info!(%id, "another process is the leader now");
                        forget_measurements();
                        round.tasks.shutdown().await;
                    }
                    leads = elected;
                }
                Err(error) => tracing::warn!(error = with_causes(&error), "leader election failed; will retry"),
            }
            if leads {
                self.start_parts(&mut round);
            }
            let wait = interval.mul_f64(1.0 - rand::random::<f64>() / 4.0);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        round.tasks.shutdown().await;
        forget_measurements();
        if leads && let Err(error) = self.state.leader_resign(id).await {
            tracing::debug!(error = with_causes(&error), "failed to resign as leader; the lease will expire");
        }
    }

    /// Starts every part that is not still running since an earlier round.
    fn start_parts(&self, round: &mut Round) {
        round.collect();
        let mut parts = vec![Part::Requeue, Part::Prune, Part::PruneNonces, Part::CheckRegions];
        if metrics::are_exported() {
            parts.push(Part::MeasureQueues);
        }
        match &self.backend {
            Backend::Stores(stores) => {
                parts.extend(stores.iter().map(|(region, _)| Part::AbortUploads(region.clone())));
                parts.push(Part::ClearLeftovers);
            }
            Backend::Ecs(_) => parts.push(Part::AbandonEcsCopies),
        }
        for part in parts {
            if !round.running.contains_key(&part) {
                let work = self.clone().part(part.clone());
                let named = part.clone();
                let task = round.tasks.spawn(async move {
                    match tokio::time::timeout(PART, work).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::warn!(part = ?named, error = with_causes(&error), "maintenance failed; will retry");
                        }
                        Err(_) => tracing::warn!(part = ?named, "maintenance took too long; will retry"),
                    }
                });
                round.running.insert(part, task.id());
            }
        }
    }

    fn part(self, part: Part) -> BoxFuture<'static, db::Result<()>> {
        match part {
            Part::MeasureQueues => self.measure_queues().boxed(),
            Part::Requeue => self.requeue().boxed(),
            Part::Prune => self.prune().boxed(),
            Part::PruneNonces => self.prune_nonces().boxed(),
            Part::AbortUploads(region) => self.abort_uploads(region).boxed(),
            Part::CheckRegions => self.check_regions().boxed(),
            Part::ClearLeftovers => self.clear_leftovers().boxed(),
            Part::AbandonEcsCopies => self.abandon_ecs_copies().boxed(),
        }
    }

    async fn measure_queues(self) -> db::Result<()> {
        metrics::queues(self.state.queues().await?);
        Ok(())
    }

    async fn requeue(self) -> db::Result<()> {
        let count = self.state.requeue_expired().await?;
        if count > 0 {
            tracing::info!(count, "requeued copies with expired leases");
        }
        let Settings { lease, longest_wait, .. } = self.settings;
        let count = self.state.clamp_waits(lease, longest_wait).await?;
        if count > 0 {
            tracing::warn!(count, "the database's clock was set back; requeued copies that would have waited for it");
        }
        Ok(())
    }

    async fn prune(self) -> db::Result<()> {
        loop {
            let (count, more) = self.state.synchronization_prune(self.settings.keep).await?;
            if count > 0 {
                tracing::info!(count, "pruned synchronizations that ended long ago");
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn prune_nonces(self) -> db::Result<()> {
        let count = self.state.nonce_prune().await?;
        tracing::debug!(count, "pruned nonces of expired requests");
        Ok(())
    }

    /// Aborts the uploads to a region that no copy will resume: of copies that failed for good, were canceled, or whose image is gone. A
    /// store that does not answer is left alone until the next round.
    async fn abort_uploads(self, region: RegionId) -> db::Result<()> {
        let Some(store) = self.backend.store(&region).cloned() else { return Ok(()) };
        for upload in self.state.upload_abandoned(&region).await? {
            if !abort(&*store, &region, &upload).await {
                return Ok(());
            }
            self.state.upload_forget(&upload.image, &region, upload.blob).await?;
        }
        Ok(())
    }

    async fn check_regions(self) -> db::Result<()> {
        self.regions.lock().await.maintain().await;
        Ok(())
    }

    /// Removes what copies that died, failed or were canceled left in the stores.
    async fn clear_leftovers(self) -> db::Result<()> {
        if let Backend::Stores(stores) = &self.backend {
            self.leftovers.run(&self.state, stores).await;
        }
        Ok(())
    }

    /// Aborts the copies of ECS that are abandoned.
    async fn abandon_ecs_copies(self) -> db::Result<()> {
        let Backend::Ecs(ecs) = &self.backend else { return Ok(()) };
        for (image, region) in self.state.ecs_copy_abandoned().await? {
            if Ecs::has(ecs, &region) {
                give_up(&self.state, ecs, &image, &region).await;
            }
        }
        Ok(())
    }
}

/// Only the leader knows the queues and the suspended copies.
fn forget_measurements() {
    metrics::queues(Vec::new());
    metrics::suspended(BTreeMap::new());
}

/// Aborts an upload. Returns whether it is gone.
async fn abort(store: &dyn Store, region: &RegionId, upload: &db::AbandonedUpload) -> bool {
    let error = match tokio::time::timeout(ABORT, store.abort(&upload.session)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => with_causes(&error),
        Err(_) => "the store did not answer in time".to_owned(),
    };
    tracing::warn!(error, image = %upload.image, %region, "failed to abort an abandoned upload; will retry");
    false
}

impl Round {
    /// Forgets the parts that have ended.
    fn collect(&mut self) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let id = match ended {
                Ok((id, ())) => id,
                Err(error) => {
                    if error.is_panic() {
                        tracing::error!(%error, "maintenance panicked; will retry");
                    }
                    error.id()
                }
            };
            self.running.retain(|_, running| *running != id);
        }
    }
}
