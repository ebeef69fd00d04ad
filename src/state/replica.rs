//! What workers do: claim, renew, report. Each is the domain's transition on a row, in a transaction that writes.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
};
use tracing::instrument;

use super::{Error, Result, State, TraceContext, entity, image::region_of, synchronization};
use crate::domain::{
    Event, Fault, Image, ImageId, Progress, RegionId, RegionStatus, Stale, State as ReplicaState, WorkerId,
};

/// How many of the traces that wait for a replica its copy is linked to at most.
const LINKS: usize = 8;

/// Replicas of one image, claimed together, so that the source is read once for all.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The image.
    pub image: Image,
    /// Its regions that are due.
    pub regions: Vec<ClaimedRegion>,
    /// The regions that have got it already.
    pub available: Vec<RegionId>,
}

/// One claimed replica.
#[derive(Debug, Clone)]
pub struct ClaimedRegion {
    /// The region.
    pub region: RegionId,
    /// What every write about it must carry.
    pub fence: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How many attempts before ended with a fault.
    pub faults: u32,
    /// Whether something of it was found damaged.
    pub suspect: bool,
    /// The traces of the calls that wait for it.
    pub traces: Vec<TraceContext>,
}

/// What a worker tells about a replica, by its fence.
#[derive(Debug, Clone)]
pub struct Report {
    /// The region.
    pub region: RegionId,
    /// What happened there.
    pub event: Event,
}

impl State {
    /// Claims every due replica of the image that has waited longest, of those in `regions`; nothing if none is due.
    pub async fn replica_claim(
        &self,
        owner: &WorkerId,
        regions: &[RegionId],
        lease: Duration,
    ) -> Result<Option<Claim>> {
        use entity::replica::{Column, Entity, Model};
        let now = self.0.clock.now();
        let due = Entity::find()
            .filter(Column::DueAt.lte(now.as_millis()))
            .filter(Column::RegionId.is_in(regions.iter().map(RegionId::as_str)));
        // Looking first where reading costs the writer nothing: mostly, nothing is due.
        if due.clone().one(&self.0.read).await?.is_none() {
            return Ok(None);
        }
        let txn = self.write().await?;
        let Some(first) = due.clone().order_by_asc(Column::DueAt).one(&txn).await? else { return Ok(None) };
        let rows = due.filter(Column::ImageId.eq(&first.image_id)).all(&txn).await?;
        let image: Image = entity::image::Entity::find_by_id(&first.image_id)
            .one(&txn)
            .await?
            .ok_or_else(|| sea_orm::DbErr::RecordNotFound(format!("image {}", first.image_id)))?
            .try_into()?;

        let mut claimed = Vec::with_capacity(rows.len());
        for row in rows {
            let region = region_of(&row)?;
            let Ok(replica) = row.replica()?.apply(Event::Claim { owner: owner.clone(), lease }, now) else { continue };
            save(&txn, Model::of(&image.id, &region, &replica)).await?;
            let traces = synchronization::traces(&txn, &image.id, &region, LINKS).await?;
            claimed.push(ClaimedRegion {
                region,
                fence: replica.fence,
                attempt: replica.attempt,
                faults: replica.faults,
                suspect: replica.suspect,
                traces,
            });
        }
        let available = Entity::find()
            .filter(Column::ImageId.eq(image.id.as_str()))
            .filter(Column::State.eq(RegionStatus::Available.as_str()))
            .all(&txn)
            .await?;
        let available = available.iter().map(region_of).collect::<Result<_>>()?;
        txn.commit().await?;
        self.0.changed.raise();
        Ok(Some(Claim { image, regions: claimed, available }))
    }

    /// Renews leases and notes progress. Returns the regions whose replicas have moved on: their copies must stop.
    pub async fn replica_renew(
        &self,
        image: &ImageId,
        lease: Duration,
        held: &[(RegionId, u64, Progress)],
    ) -> Result<Vec<RegionId>> {
        let reports = held.iter().map(|(region, fence, progress)| Report {
            region: region.clone(),
            event: Event::Renew { fence: *fence, lease, progress: *progress },
        });
        let (_, lost) = self.transit(image, reports.collect()).await?;
        Ok(lost)
    }

    /// Whether the claim with that fence is still good.
    pub async fn replica_holds(&self, image: &ImageId, region: &RegionId, fence: u64) -> Result<bool> {
        let key = (image.to_string(), region.to_string());
        let Some(row) = entity::replica::Entity::find_by_id(key).one(&self.0.read).await? else { return Ok(false) };
        let replica = row.replica()?;
        let now = self.0.clock.now();
        Ok(replica.fence == fence && matches!(&replica.state, ReplicaState::Copying { lease, .. } if lease.until > now))
    }

    /// Writes down that a replica was found damaged: the next call that asks for it makes it good.
    pub async fn replica_damaged(
        &self,
        image: &ImageId,
        region: &RegionId,
        fault: Fault,
    ) -> Result<std::result::Result<(), Stale>> {
        let report = Report { region: region.clone(), event: Event::Damaged { fault } };
        let (_, lost) = self.transit(image, vec![report]).await?;
        Ok(if lost.is_empty() { Ok(()) } else { Err(Stale) })
    }

    /// Writes down how a copy went on. Returns [`Stale`] inside where its worker was overtaken and nothing was written.
    #[instrument(name = "UPDATE replica", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn replica_report(&self, image: &ImageId, report: Report) -> Result<std::result::Result<(), Stale>> {
        let (pending, lost) = self.transit(image, vec![report]).await?;
        if pending {
            self.0.due.raise();
        }
        Ok(if lost.is_empty() { Ok(()) } else { Err(Stale) })
    }

    /// Applies events to replicas of an image, and settles the synchronizations that wait for those that ended. Returns
    /// whether one waits for a worker now, and the regions where the event had no place.
    async fn transit(&self, image: &ImageId, reports: Vec<Report>) -> Result<(bool, Vec<RegionId>)> {
        let now = self.0.clock.now();
        let txn = self.write().await?;
        let mut lost = Vec::new();
        let mut pending = false;
        for Report { region, event } in reports {
            match apply(&txn, image, &region, event, now).await? {
                Ok(after) => {
                    pending |= after.outcome().is_none();
                    if after.outcome().is_some() {
                        synchronization::settle(&txn, image, &region, &after, now).await?;
                    }
                }
                Err(Stale) => lost.push(region),
            }
        }
        txn.commit().await?;
        self.0.changed.raise();
        Ok((pending, lost))
    }
}

/// Applies one event to one replica's row. A replica that is not there any more is as stale as one that has moved on.
pub(super) async fn apply(
    txn: &DatabaseTransaction,
    image: &ImageId,
    region: &RegionId,
    event: Event,
    now: crate::domain::Timestamp,
) -> Result<std::result::Result<crate::domain::Replica, Stale>> {
    use entity::replica::{Entity, Model};
    let key = (image.to_string(), region.to_string());
    let Some(row) = Entity::find_by_id(key).one(txn).await? else { return Ok(Err(Stale)) };
    match row.replica()?.apply(event, now) {
        Ok(after) => {
            save(txn, Model::of(image, region, &after)).await?;
            Ok(Ok(after))
        }
        Err(Stale) => Ok(Err(Stale)),
    }
}

async fn save(txn: &DatabaseTransaction, row: entity::replica::Model) -> Result<()> {
    row.into_active_model().reset_all().update(txn).await.map(drop).map_err(|error| Error::Database(Arc::new(error)))
}
