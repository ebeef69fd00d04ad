//! Group commit of workers' reports: renewed leases, copies that have ended, and released claims.

use std::collections::BTreeMap;

use domain::{Event, Fault, ImageId, Progress, RegionId, RegionView, Replica, Stale};
use tokio::sync::oneshot;
use tracing::instrument;

use super::settlement;
use crate::{Db, Error, Result, connections::Transaction, entity, group_commit, replica};

/// Maximum number of report batches in one commit.
pub const BATCH: usize = 256;

/// Maximum number of report batches that wait for a commit.
pub const QUEUE: usize = 4_096;

/// A worker's report on a replica.
#[derive(Debug, Clone)]
pub struct Report {
    /// Region of the replica.
    pub region: RegionId,
    /// What happened, with the fence of the claim.
    pub event: Event,
}

/// Reports on the replicas of one image.
#[derive(Debug)]
pub struct ReportBatch {
    image: ImageId,
    reports: Vec<Report>,
}

/// A report batch in the queue. The result lists the regions whose replicas rejected the event.
pub type Queued = group_commit::Queued<ReportBatch, Vec<RegionId>>;

impl Db {
    /// Renews leases and records progress. Returns the regions whose claims were overtaken; the copies to these regions
    /// must stop.
    pub async fn replica_renew(
        &self,
        image: &ImageId,
        lease: std::time::Duration,
        claims: &[(RegionId, u64, Progress)],
    ) -> Result<Vec<RegionId>> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let reports = claims.iter().map(|(region, fence, progress)| Report {
            region: region.clone(),
            event: Event::Renew { fence: *fence, lease, progress: *progress },
        });
        self.submit(image, reports.collect()).await
    }

    /// Records that a replica was found damaged. The next call that requests the replica repairs it.
    pub async fn replica_damaged(
        &self,
        image: &ImageId,
        region: &RegionId,
        fault: Fault,
    ) -> Result<std::result::Result<(), Stale>> {
        self.replica_report(image, Report { region: region.clone(), event: Event::Damaged { fault } }).await
    }

    /// Records that the whole replica was read again and matches its digests.
    pub async fn replica_confirmed(
        &self,
        image: &ImageId,
        region: &RegionId,
    ) -> Result<std::result::Result<(), Stale>> {
        self.replica_report(image, Report { region: region.clone(), event: Event::Confirmed }).await
    }

    /// Records an event of a copy. Returns an inner [`Stale`] error, and writes nothing, if the claim was overtaken.
    #[instrument(name = "UPDATE replica", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "UPDATE", db.collection.name = "replica"))]
    pub async fn replica_report(&self, image: &ImageId, report: Report) -> Result<std::result::Result<(), Stale>> {
        let rejected = self.submit(image, vec![report]).await?;
        Ok(if rejected.is_empty() { Ok(()) } else { Err(Stale) })
    }

    /// Queues reports for the task that commits them. Returns the regions whose replicas rejected the event.
    async fn submit(&self, image: &ImageId, reports: Vec<Report>) -> Result<Vec<RegionId>> {
        let (reply, result) = oneshot::channel();
        let queued = Queued { item: ReportBatch { image: image.clone(), reports }, reply };
        self.0.report_queue.send(queued).await.map_err(|_| Error::Closed)?;
        result.await.map_err(|_| Error::Closed)?
    }
}

/// Commits report batches in one transaction. Returns the result of each.
pub async fn commit_batch(db: &Db, batches: &[ReportBatch]) -> Result<Vec<Result<Vec<RegionId>>>> {
    let write = async |txn: Transaction| {
        let txn = &txn;
        let keys =
            batches.iter().flat_map(|batch| batch.reports.iter().map(|r| (batch.image.clone(), r.region.clone())));
        let locked = replica::lock(txn, keys.collect(), replica::Lock::Update).await?;
        let mut applied = apply(batches, &locked)?;
        replica::save(txn, std::mem::take(&mut applied.rows)).await?;
        settlement::settle(txn, &applied.ended, locked.now).await?;
        Ok(applied)
    };
    let applied = db.0.connections.transaction_once(write).await?;
    // Progress alone is not sent to other processes: their watchers see it when they poll.
    if applied.has_transitions {
        db.0.signals.notify_changed();
    } else {
        db.0.signals.notify_progress();
    }
    if applied.has_due {
        db.0.signals.notify_due();
    }
    Ok(applied.rejected.into_iter().map(Ok).collect())
}

/// Result of applying report batches.
#[derive(Debug, Default)]
struct Applied {
    /// The changed rows.
    rows: Vec<entity::replica::Model>,
    /// Replicas that have ended.
    ended: Vec<(ImageId, RegionView)>,
    /// For each batch, the regions whose replicas rejected the event.
    rejected: Vec<Vec<RegionId>>,
    /// Whether any event was more than a renewal with progress.
    has_transitions: bool,
    /// Whether a replica is due for a worker now.
    has_due: bool,
}

/// Applies reports in order to locked rows.
fn apply(batches: &[ReportBatch], locked: &replica::Locked) -> Result<Applied> {
    let mut applied = Applied::default();
    let mut changed: BTreeMap<replica::Key, Replica> = BTreeMap::new();
    for ReportBatch { image, reports } in batches {
        let mut rejected = Vec::new();
        for Report { region, event } in reports {
            let key = (image.clone(), region.clone());
            let before = match (changed.get(&key), locked.rows.get(&key)) {
                (Some(replica), _) => Some(replica.clone()),
                (None, Some(row)) => Some(row.replica()?),
                (None, None) => None,
            };
            // A replica of a removed image rejects every event.
            let Some(Ok(after)) = before.map(|replica| replica.apply(event.clone(), locked.now)) else {
                rejected.push(region.clone());
                continue;
            };
            applied.has_due |= after.claimable(locked.now);
            applied.has_transitions |= !matches!(event, Event::Renew { .. });
            if after.outcome().is_some() {
                applied.ended.push((image.clone(), RegionView::new(region.clone(), &after)));
            }
            changed.insert(key, after);
        }
        applied.rejected.push(rejected);
    }
    let rows = changed.iter().filter_map(|(key, replica)| Some((key, replica, locked.rows.get(key)?)));
    applied.rows = rows.map(|((image, region), replica, row)| row.successor(image, region, replica)).collect();
    Ok(applied)
}
