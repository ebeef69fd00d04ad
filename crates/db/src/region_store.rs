//! The configured regions and their stores: when a process last had each region configured, and which store held its
//! images. Replicas in a region that no process has configured are suspended until a process configures it.

use std::{collections::BTreeMap, time::Duration};

use domain::{Event, Fault, Image, ImageId, RegionId, RegionStatus, RegionView, Regions};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, OnConflict},
};

use super::{
    Db, Error, Result,
    bulk::settlement,
    connections::{Reader, Transaction},
    entity::{
        self,
        columns::Number,
        image,
        region_store::{ActiveModel, Column, Entity},
        replica::{SUSPENDED, Text},
    },
    region_capacity::region_rows,
    replica::{self, Lock, TimedRow},
    sql::{self, Sql},
};

/// Maximum number of replicas that one transaction changes.
const BATCH: i64 = 500;

/// A region that is or was configured.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RegionStore {
    pub region: RegionId,
    /// Location of the store whose images were last confirmed; `None` if it was not recorded.
    pub location: Option<String>,
    /// Time since a process last recorded the region as configured.
    pub unseen: Duration,
    /// Whether the recorded time lies in the future, because the database's clock was set back since.
    pub is_ahead: bool,
}

impl Db {
    /// Returns the regions that are or were configured, sorted by id.
    pub async fn region_stores(&self) -> Result<Vec<RegionStore>> {
        let read = async |reader: Reader| {
            let rows = Entity::find().order_by_asc(Column::RegionId).all(&reader).await?;
            Ok((rows, sql::database_time(&reader).await?))
        };
        let (rows, now) = self.0.connections.read(read).await?;
        let store = |row: entity::region_store::Model| RegionStore {
            region: row.region_id.0,
            location: row.location,
            is_ahead: row.seen_at.0 > now,
            unseen: row.seen_at.0.until(now),
        };
        Ok(rows.into_iter().map(store).collect())
    }

    /// Records that this process has its regions configured, unless a process recorded that within `interval`.
    pub async fn regions_seen(&self, interval: Duration) -> Result<()> {
        let stores = self.region_stores().await?;
        let is_recent =
            |region: &RegionId| stores.iter().any(|store| store.region == *region && store.unseen < interval);
        if self.0.regions.iter().all(is_recent) {
            return Ok(());
        }
        self.0.connections.transaction(async |txn| record_seen(&txn, &self.0.regions).await).await
    }

    /// Records the location of the store of a region that was recorded as seen.
    pub async fn region_located(&self, region: &RegionId, location: &str) -> Result<()> {
        let row = ActiveModel {
            region_id: Set(region.clone().into()),
            location: Set(Some(location.to_owned())),
            ..Default::default()
        };
        let update = async |txn: Transaction| {
            Entity::update(row.clone()).exec(&txn).await?;
            Ok(())
        };
        self.0.connections.transaction(update).await
    }

    /// Suspends pending replicas of a region and copies with expired leases, a batch at a time. Returns the number of
    /// suspended replicas, which is 0 once none are left.
    pub async fn replicas_suspend(&self, region: &RegionId, reason: &Fault) -> Result<usize> {
        let waiting = |sql: Sql| {
            sql.text("replica AS r WHERE r.region_id = ")
                .value(region.as_str())
                .text(" AND r.due_at < ")
                .value(SUSPENDED)
                .text(" AND (r.state = 'PENDING' OR r.due_at <= ")
                .now()
                .text(")")
        };
        let suspended = self.replicas_apply(waiting, &Event::Suspend { reason: reason.clone() }).await?;
        if suspended > 0 {
            self.0.signals.notify_changed();
        }
        Ok(suspended)
    }

    /// Resumes the suspended replicas of the configured regions, a batch at a time. Returns the number of resumed
    /// replicas, which is 0 once none are left.
    pub async fn replicas_resume(&self) -> Result<usize> {
        let suspended = |sql: Sql| {
            sql.rows(region_rows("id", self.0.regions.iter()))
                .join()
                .text("replica AS r ON r.region_id = w.id AND r.due_at >= ")
                .value(SUSPENDED)
        };
        let resumed = self.replicas_apply(suspended, &Event::Resume).await?;
        if resumed > 0 {
            self.0.signals.notify_changed();
            self.0.signals.notify_due();
        }
        Ok(resumed)
    }

    /// Applies an event to a batch of the replicas that a statement selects.
    async fn replicas_apply(&self, select: impl Fn(Sql) -> Sql, event: &Event) -> Result<usize> {
        let find = async |reader: Reader| {
            Ok(select(replica::select_timed(&reader)).text(" LIMIT ").value(BATCH).all(&reader).await?)
        };
        let rows: Vec<TimedRow> = self.0.connections.read(find).await?;
        let keys: Vec<replica::Key> = rows.iter().map(|timed| timed.row.key()).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        self.0.connections.transaction(async |txn| replica::apply(&txn, keys.clone(), event).await).await
    }

    /// Counts the suspended replicas of some regions. Regions without any are left out.
    pub async fn replicas_suspended(&self, regions: &[RegionId]) -> Result<BTreeMap<RegionId, u64>> {
        use entity::replica::{Column, Entity};
        if regions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let query = Entity::find()
            .select_only()
            .column(Column::RegionId)
            .column_as(Column::RegionId.count(), "suspended")
            .filter(Column::RegionId.is_in(regions.iter().map(RegionId::as_str)))
            .filter(Column::DueAt.gte(SUSPENDED))
            .group_by(Column::RegionId)
            .into_tuple();
        let rows: Vec<(Text<RegionId>, Number<u64>)> =
            self.0.connections.read(async |reader| Ok(query.all(&reader).await?)).await?;
        Ok(rows.into_iter().map(|(region, suspended)| (region.0, suspended.0)).collect())
    }

    /// Returns up to `limit` images that are AVAILABLE in a region and whose ids follow `after`, in the order of their
    /// ids.
    pub async fn images_available(&self, region: &RegionId, after: Option<&ImageId>, limit: u64) -> Result<Vec<Image>> {
        use entity::replica::{Column, Entity};
        let find = async |reader: Reader| {
            let ids: Vec<String> = Entity::find()
                .select_only()
                .column(Column::ImageId)
                .filter(Column::RegionId.eq(region.as_str()))
                .filter(Column::State.eq(RegionStatus::Available.as_str()))
                .filter(Column::ImageId.gt(after.map_or("", ImageId::as_str)))
                .order_by_asc(Column::ImageId)
                .limit(limit)
                .into_tuple()
                .all(&reader)
                .await?;
            let images = image::Entity::find().filter(image::Column::Id.is_in(ids));
            let images = images.order_by_asc(image::Column::Id).all(&reader).await?;
            Ok(images.into_iter().map(Image::from).collect())
        };
        self.0.connections.read(find).await
    }
}

/// Records regions that were seen in the future as seen now.
pub async fn clamp_seen(txn: &Transaction) -> Result<()> {
    let now = Number(sql::database_time(txn).await?);
    Entity::update_many().col_expr(Column::SeenAt, Expr::value(now)).filter(Column::SeenAt.gt(now)).exec(txn).await?;
    Ok(())
}

/// Records that regions are configured now.
async fn record_seen(txn: &Transaction, regions: &Regions) -> Result<()> {
    let now = sql::database_time(txn).await?;
    let rows = regions.iter().map(|region| ActiveModel {
        region_id: Set(region.clone().into()),
        location: Set(None),
        seen_at: Set(now.into()),
    });
    let conflict = OnConflict::column(Column::RegionId).update_column(Column::SeenAt).to_owned();
    Entity::insert_many(rows).on_conflict(conflict).exec_without_returning(txn).await?;
    Ok(())
}

/// Cancels suspended replicas so that their image can be removed, and settles the synchronizations that wait for them.
/// Returns [`Error::ImageInUse`] if a replica is no longer suspended.
pub(super) async fn cancel_suspended(txn: &Transaction, image: &ImageId, regions: Vec<RegionId>) -> Result<()> {
    if regions.is_empty() {
        return Ok(());
    }
    let keys = regions.into_iter().map(|region| (image.clone(), region)).collect();
    let locked = replica::lock(txn, keys, Lock::Update).await?;
    let (mut changed, mut ended, mut in_flight) = (Vec::new(), Vec::new(), Vec::new());
    for ((image, region), row) in &locked.rows {
        let replica = row.replica()?;
        match replica.apply(Event::Cancel, locked.now) {
            Ok(canceled) if replica.is_suspended() => {
                changed.push(row.successor(image, region, &canceled));
                ended.push((image.clone(), RegionView::new(region.clone(), &canceled)));
            }
            _ if replica.outcome().is_none() => in_flight.push(region.clone()),
            _ => {}
        }
    }
    if !in_flight.is_empty() {
        return Err(Error::ImageInUse { image: image.clone(), regions: in_flight });
    }
    replica::save(txn, changed).await?;
    settlement::settle(txn, &ended, locked.now).await
}
