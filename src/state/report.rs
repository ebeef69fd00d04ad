//! What workers tell about their copies, many at a time: whatever has gathered is applied and committed in one transaction, and
//! then everybody is answered. Leases that are renewed, copies that have ended and claims that are handed back go the same way.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tracing::instrument;

use super::{Error, Result, State, database::Transaction, entity, group, replica, synchronization};
use crate::domain::{Event, Fault, ImageId, Progress, RegionId, RegionView, Replica, Stale};

/// Reports that are committed together at most.
pub(super) const BATCH: usize = 256;

/// Reports that may wait to be committed.
pub(super) const QUEUE: usize = 4_096;

/// What a worker tells about a replica, by its fence.
#[derive(Debug, Clone)]
pub struct Report {
    /// The region.
    pub region: RegionId,
    /// What happened there.
    pub event: Event,
}

/// Reports on an image.
#[derive(Debug)]
pub(super) struct Told {
    image: ImageId,
    reports: Vec<Report>,
}

/// Reports that wait to be committed. They are answered with the regions where the event had no place.
pub(super) type Queued = group::Queued<Told, Vec<RegionId>>;

impl State {
    /// Renews leases and notes progress. Returns the regions whose replicas have moved on: their copies must stop.
    pub async fn replica_renew(
        &self,
        image: &ImageId,
        lease: std::time::Duration,
        held: &[(RegionId, u64, Progress)],
    ) -> Result<Vec<RegionId>> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let reports = held.iter().map(|(region, fence, progress)| Report {
            region: region.clone(),
            event: Event::Renew { fence: *fence, lease, progress: *progress },
        });
        self.tell(image, reports.collect()).await
    }

    /// Writes down that a replica was found damaged: the next call that asks for it makes it good.
    pub async fn replica_damaged(
        &self,
        image: &ImageId,
        region: &RegionId,
        fault: Fault,
    ) -> Result<std::result::Result<(), Stale>> {
        self.replica_report(image, Report { region: region.clone(), event: Event::Damaged { fault } }).await
    }

    /// Writes down that all of a replica was read again and is whole.
    pub async fn replica_confirmed(
        &self,
        image: &ImageId,
        region: &RegionId,
    ) -> Result<std::result::Result<(), Stale>> {
        self.replica_report(image, Report { region: region.clone(), event: Event::Confirmed }).await
    }

    /// Writes down how a copy went on. Returns [`Stale`] inside where its worker was overtaken and nothing was written.
    #[instrument(name = "UPDATE replica", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "UPDATE", db.collection.name = "replica"))]
    pub async fn replica_report(&self, image: &ImageId, report: Report) -> Result<std::result::Result<(), Stale>> {
        let lost = self.tell(image, vec![report]).await?;
        Ok(if lost.is_empty() { Ok(()) } else { Err(Stale) })
    }

    /// Hands reports to the task that commits them. Returns the regions where the event had no place.
    async fn tell(&self, image: &ImageId, reports: Vec<Report>) -> Result<Vec<RegionId>> {
        let (reply, answer) = oneshot::channel();
        let queued = Queued { asked: Told { image: image.clone(), reports }, reply };
        self.0.reports.send(queued).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

/// Commits reports together, and answers each.
pub(super) async fn commit_together(state: &State, told: &[Told]) -> Result<Vec<Result<Vec<RegionId>>>> {
    let write = async |txn: Transaction| {
        let txn = &txn;
        let keys = told.iter().flat_map(|t| t.reports.iter().map(|r| (t.image.clone(), r.region.clone())));
        let locked = replica::lock(txn, keys.collect(), replica::Lock::Change).await?;
        let mut applied = apply(told, &locked)?;
        replica::save(txn, std::mem::take(&mut applied.rows)).await?;
        synchronization::settle(txn, &applied.ended, locked.now).await?;
        Ok(applied)
    };
    let applied = state.0.db.transaction_once(write).await?;
    // Progress alone is seen by those of other processes when they look by themselves.
    if applied.news {
        state.0.signals.changed();
    } else {
        state.0.signals.progressed();
    }
    if applied.due {
        state.0.signals.due();
    }
    Ok(applied.lost.into_iter().map(Ok).collect())
}

/// What becomes of rows by some reports.
#[derive(Debug, Default)]
struct Applied {
    /// The rows that have changed.
    rows: Vec<entity::replica::Model>,
    /// The replicas that have ended.
    ended: Vec<(ImageId, RegionView)>,
    /// Of each report on an image, the regions where the event had no place.
    lost: Vec<Vec<RegionId>>,
    /// Whether anything but progress was told.
    news: bool,
    /// Whether a replica waits for a worker now.
    due: bool,
}

/// Applies reports, in their order, to rows that are locked.
fn apply(told: &[Told], locked: &replica::Locked) -> Result<Applied> {
    let mut applied = Applied::default();
    let mut changed: BTreeMap<replica::Key, Replica> = BTreeMap::new();
    for Told { image, reports } in told {
        let mut lost = Vec::new();
        for Report { region, event } in reports {
            let key = (image.clone(), region.clone());
            let before = match (changed.get(&key), locked.rows.get(&key)) {
                (Some(replica), _) => Some(replica.clone()),
                (None, Some(row)) => Some(row.replica()?),
                (None, None) => None,
            };
            // A replica that is not there any more is as stale as one that has moved on.
            let Some(Ok(after)) = before.map(|replica| replica.apply(event.clone(), locked.now)) else {
                lost.push(region.clone());
                continue;
            };
            applied.due |= after.claimable(locked.now);
            applied.news |= !matches!(event, Event::Renew { .. });
            if after.outcome().is_some() {
                applied.ended.push((image.clone(), synchronization::view(region, &after)));
            }
            changed.insert(key, after);
        }
        applied.lost.push(lost);
    }
    let rows = changed.iter().filter_map(|(key, replica)| Some((key, replica, locked.rows.get(key)?)));
    applied.rows = rows.map(|((image, region), replica, row)| row.followed_by(image, region, replica)).collect();
    Ok(applied)
}
