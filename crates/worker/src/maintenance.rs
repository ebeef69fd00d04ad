//! The maintenance that the leader, elected by a lease, does for all processes: requeues copies with expired leases,
//! prunes old synchronizations, and aborts abandoned uploads and ECS copies.
//!
//! The parts run concurrently, each with a deadline and separately for each region, so that a store that hangs delays
//! only its own part.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use db::{self, Db};
use domain::{Backoff, RegionId, WorkerId, with_causes};
use futures_util::{FutureExt as _, future::BoxFuture};
use instrumentation::metrics;
use storage::{Backend, Ecs, Store};
use tokio::{
    sync::Mutex,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    ecs::abandon,
    leftovers::LeftoverSweep,
    region_check::{RegionCheck, record_configured},
};

/// The duration of the leader's lease, as a multiple of the interval.
const LEASE: u32 = 3;
/// The time limit of one part of a round.
const PART: Duration = Duration::from_secs(90);
/// The time limit for aborting one upload.
const ABORT: Duration = Duration::from_secs(10);
/// Retries of uploads that a store failed to abort, for about a day. Most registries remove such uploads by themselves
/// after a week.
pub const STRAY_UPLOADS: Backoff =
    Backoff { first: Duration::from_secs(60), longest: Duration::from_secs(6 * 3_600), attempts: 12 };

/// The settings of the maintenance.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The owner of the leader's lease.
    pub id: WorkerId,
    /// The interval between two rounds.
    pub interval: Duration,
    /// How long finished synchronizations are kept.
    pub keep: Duration,
    /// The location of each configured region's store, without secrets.
    pub locations: Vec<(RegionId, String)>,
    /// The duration of a claim's lease.
    pub lease: Duration,
    /// The retries of uploads that a store failed to abort.
    pub stray_uploads: Backoff,
}

/// Runs the maintenance while this process is the leader.
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

/// The running parts.
#[derive(Default)]
struct Round {
    tasks: JoinSet<()>,
    running: BTreeMap<Part, Id>,
}

impl Maintenance {
    /// Creates the maintenance of a database and its regions.
    #[must_use]
    pub fn new(state: Db, backend: Backend, settings: Settings) -> Self {
        let Settings { locations, interval, .. } = &settings;
        let regions = RegionCheck::new(state.clone(), backend.clone(), locations.clone(), *interval);
        let regions = Arc::new(Mutex::new(regions));
        Self { state, backend, settings, leftovers: LeftoverSweep::default(), regions }
    }

    /// Runs the maintenance whenever this process is the leader, until `stop` is canceled.
    pub async fn run(self, stop: CancellationToken) {
        let Settings { id, interval, .. } = &self.settings;
        let mut is_leader = false;
        let mut round = Round::default();
        while !stop.is_cancelled() {
            record_configured(&self.state, *interval).await;
            match self.state.leader_acquire(id, *interval * LEASE).await {
                Ok(is_elected) => {
                    if is_elected && !is_leader {
                        tracing::info!(%id, "elected leader");
                    }
                    if is_leader && !is_elected {
                        tracing::info!(%id, "lost the leader's lease; stopping maintenance");
                        forget_measurements();
                        round.tasks.shutdown().await;
                    }
                    is_leader = is_elected;
                }
                Err(error) => tracing::warn!(error = with_causes(&error), "leader election failed; will retry"),
            }
            if is_leader {
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
        if is_leader && let Err(error) = self.state.leader_resign(id).await {
            tracing::debug!(error = with_causes(&error), "failed to resign as leader; the lease will expire");
        }
    }

    /// Starts every part that is not still running from an earlier round.
    fn start_parts(&self, round: &mut Round) {
        round.forget_finished();
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
                let work = self.clone().run_part(part.clone());
                let name = part.clone();
                let task = round.tasks.spawn(async move {
                    match tokio::time::timeout(PART, work).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::warn!(part = ?name, error = with_causes(&error), "maintenance failed; will retry");
                        }
                        Err(_) => tracing::warn!(part = ?name, "maintenance took too long; will retry"),
                    }
                });
                round.running.insert(part, task.id());
            }
        }
    }

    fn run_part(self, part: Part) -> BoxFuture<'static, db::Result<()>> {
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
        metrics::set_queues(self.state.queues().await?);
        Ok(())
    }

    async fn requeue(self) -> db::Result<()> {
        let count = self.state.requeue_expired().await?;
        if count > 0 {
            tracing::info!(count, "requeued copies with expired leases");
        }
        let count = self.state.restart_waits(self.settings.lease).await?;
        if count > 0 {
            tracing::warn!(count, "the database's clock was set back; restarted waits and leases that began later");
        }
        Ok(())
    }

    async fn prune(self) -> db::Result<()> {
        loop {
            let (count, more) = self.state.synchronization_prune(self.settings.keep).await?;
            if count > 0 {
                tracing::info!(count, "pruned finished synchronizations");
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

    /// Aborts the uploads to a region that no copy will resume, because the copy failed or was canceled or its image
    /// was removed. Stops at the first failure until the next round.
    async fn abort_uploads(self, region: RegionId) -> db::Result<()> {
        let Some(store) = self.backend.store(&region).cloned() else { return Ok(()) };
        for upload in self.state.upload_abandoned(&region).await? {
            if !abort(&*store, &region, &upload.session).await {
                return Ok(());
            }
            self.state.upload_forget(&upload.image, &region, upload.blob).await?;
        }
        for stray in self.state.stray_uploads_due(&region, self.settings.stray_uploads.longest).await? {
            if abort(&*store, &region, &stray.session).await {
                tracing::info!(%region, "aborted a stray upload");
                self.state.stray_upload_forget(&stray).await?;
                continue;
            }
            match self.settings.stray_uploads.wait(stray.attempts, rand::random()) {
                Some(wait) => self.state.stray_upload_defer(&stray, wait).await?,
                None => {
                    tracing::warn!(%region, "failed to abort a stray upload; giving up, it remains until the store removes it");
                    self.state.stray_upload_forget(&stray).await?;
                }
            }
            return Ok(());
        }
        Ok(())
    }

    async fn check_regions(self) -> db::Result<()> {
        self.regions.lock().await.maintain().await;
        Ok(())
    }

    /// Removes the leftovers of copies that died, failed or were canceled.
    async fn clear_leftovers(self) -> db::Result<()> {
        if let Backend::Stores(stores) = &self.backend {
            self.leftovers.run(&self.state, stores).await;
        }
        Ok(())
    }

    /// Aborts abandoned ECS copies.
    async fn abandon_ecs_copies(self) -> db::Result<()> {
        let Backend::Ecs(ecs) = &self.backend else { return Ok(()) };
        for (image, region) in self.state.ecs_copy_abandoned().await? {
            if Ecs::has(ecs, &region) {
                abandon(&self.state, ecs, &image, &region).await;
            }
        }
        Ok(())
    }
}

/// Clears the gauges that only the leader reports.
fn forget_measurements() {
    metrics::set_queues(Vec::new());
    metrics::set_suspended(BTreeMap::new());
}

/// Aborts an upload. Returns whether that succeeded.
async fn abort(store: &dyn Store, region: &RegionId, session: &str) -> bool {
    let error = match tokio::time::timeout(ABORT, store.abort(session)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => with_causes(&error),
        Err(_) => "the store did not respond in time".to_owned(),
    };
    tracing::warn!(error, %region, "failed to abort an abandoned upload; will retry");
    false
}

impl Round {
    /// Removes the parts that have ended.
    fn forget_finished(&mut self) {
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
