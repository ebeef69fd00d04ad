//! The regions that are or were configured: when a process last had each, and which store it was. Replicas in a region that no process
//! has configured are suspended until one has.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, FromQueryResult, QueryFilter};

use super::{
    Error, Result, State,
    database::{Reader, Transaction},
    entity::{self, replica::SUSPENDED},
    gate::names,
    replica::{self, Lock, Timed},
    sql::Sql,
    synchronization,
};
use crate::domain::{Event, Fault, Image, ImageId, RegionId, RegionStatus, Regions, Timestamp};

/// How many replicas one transaction changes at most.
const BATCH: usize = 500;

/// A region that is or was configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionStore {
    /// The region.
    pub region: RegionId,
    /// The store whose images have last been known to be there; nothing if that has not been recorded.
    pub location: Option<String>,
    /// How long ago a process last had the region configured.
    pub unseen: Duration,
    /// Whether that lies ahead, because the database's clock was set back since.
    pub is_ahead: bool,
}

impl State {
    /// The regions that are or were configured.
    pub async fn region_stores(&self) -> Result<Vec<RegionStore>> {
        #[derive(FromQueryResult)]
        struct Row {
            region_id: String,
            location: Option<String>,
            seen_at: i64,
            now_millis: i64,
        }
        let ask = async |db: Reader| {
            let sql = Sql::on(&db)
                .text("SELECT s.region_id, s.location, s.seen_at, ")
                .now()
                .text(" AS now_millis FROM region_store AS s ORDER BY s.region_id");
            Ok(sql.all(&db).await?)
        };
        let read: Vec<Row> = self.0.db.read(ask).await?;
        let store = |row: Row| {
            Ok(RegionStore {
                region: entity::parse("region_store.region_id", &row.region_id)?,
                location: row.location,
                is_ahead: row.seen_at > row.now_millis,
                unseen: Timestamp::from_millis(row.seen_at).until(Timestamp::from_millis(row.now_millis)),
            })
        };
        read.into_iter().map(store).collect()
    }

    /// Records that a process has its regions configured, unless one has recorded that within `every`.
    pub async fn regions_seen(&self, every: Duration) -> Result<()> {
        let known = self.region_stores().await?;
        let is_fresh = |region: &RegionId| known.iter().any(|store| store.region == *region && store.unseen < every);
        if self.0.regions.iter().all(is_fresh) {
            return Ok(());
        }
        self.0.db.transaction(async |txn| record_seen(&txn, &self.0.regions).await).await
    }

    /// Records the store of a region that has been recorded as seen.
    pub async fn region_located(&self, region: &RegionId, location: &str) -> Result<()> {
        use entity::region_store::{ActiveModel, Entity};
        let row = ActiveModel {
            region_id: Set(region.to_string()),
            location: Set(Some(location.to_owned())),
            ..Default::default()
        };
        let locate = async |txn: Transaction| {
            let txn = &txn;
            Entity::update(row.clone()).exec(txn).await?;
            Ok(())
        };
        self.0.db.transaction(locate).await
    }

    /// Suspends replicas that wait in a region, and those whose worker's lease has expired, some at a time. Returns how many; with
    /// none, none is left.
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
            self.0.signals.changed();
        }
        Ok(suspended)
    }

    /// Resumes the suspended replicas of the configured regions, some at a time. Returns how many; with none, none is left.
    pub async fn replicas_resume(&self) -> Result<usize> {
        let suspended = |sql: Sql| {
            sql.rows(names("id", self.0.regions.iter()))
                .join()
                .text("replica AS r ON r.region_id = w.id AND r.due_at >= ")
                .value(SUSPENDED)
        };
        let resumed = self.replicas_apply(suspended, &Event::Resume).await?;
        if resumed > 0 {
            self.0.signals.changed();
            self.0.signals.due();
        }
        Ok(resumed)
    }

    /// Applies an event to the replicas that a statement finds, some at a time.
    async fn replicas_apply(&self, find: impl Fn(Sql) -> Sql, event: &Event) -> Result<usize> {
        let look = async |db: Reader| {
            let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
            Ok(find(replica::reading(&db)).text(" LIMIT ").value(limit).all(&db).await?)
        };
        let found: Vec<Timed> = self.0.db.read(look).await?;
        let keys: Vec<replica::Key> = found.iter().map(|timed| timed.row.key()).collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(0);
        }
        self.0.db.transaction(async |txn| replica::apply(&txn, keys.clone(), event).await).await
    }

    /// How many replicas are suspended in each of some regions; those without any are left out.
    pub async fn replicas_suspended(&self, regions: &[RegionId]) -> Result<BTreeMap<RegionId, u64>> {
        #[derive(FromQueryResult)]
        struct Row {
            region_id: String,
            suspended: i64,
        }
        if regions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ask = async |db: Reader| {
            let sql = Sql::on(&db)
                .text("SELECT r.region_id, COUNT(*) AS suspended FROM ")
                .rows(names("id", regions.iter()))
                .join()
                .text("replica AS r ON r.region_id = w.id AND r.due_at >= ")
                .value(SUSPENDED)
                .text(" GROUP BY r.region_id");
            Ok(sql.all(&db).await?)
        };
        let read: Vec<Row> = self.0.db.read(ask).await?;
        let count =
            |row: Row| Ok((entity::parse("replica.region_id", &row.region_id)?, entity::unsigned(row.suspended)));
        read.into_iter().map(count).collect()
    }

    /// Images that are AVAILABLE in a region and whose ids come after `after`, in the order of their ids, `limit` at most.
    pub async fn images_available(&self, region: &RegionId, after: Option<&ImageId>, limit: u64) -> Result<Vec<Image>> {
        use entity::image;
        #[derive(FromQueryResult)]
        struct Row {
            image_id: String,
        }
        let ask = async |db: Reader| {
            let db = &db;
            let found: Vec<Row> = Sql::on(db)
                .text("SELECT r.image_id FROM replica AS r WHERE r.region_id = ")
                .value(region.as_str())
                .text(&format!(" AND r.state = '{}' AND r.image_id > ", RegionStatus::Available.as_str()))
                .value(after.map_or("", ImageId::as_str))
                .text(" ORDER BY r.image_id LIMIT ")
                .value(i64::try_from(limit).unwrap_or(i64::MAX))
                .all(db)
                .await?;
            let ids = found.iter().map(|row| row.image_id.as_str());
            let mut images = image::Entity::find().filter(image::Column::Id.is_in(ids)).all(db).await?;
            images.sort_unstable_by(|one, other| one.id.cmp(&other.id));
            images.into_iter().map(|row| Ok(row.try_into()?)).collect()
        };
        self.0.db.read(ask).await
    }
}

/// Takes regions for seen now that lie ahead.
pub async fn pull_back(txn: &Transaction) -> Result<()> {
    Sql::on(txn).text("UPDATE region_store SET seen_at = ").now().text(" WHERE seen_at > ").now().execute(txn).await?;
    Ok(())
}

/// Records that regions are configured now.
async fn record_seen(txn: &Transaction, regions: &Regions) -> Result<()> {
    let own = || names("region_id", regions.iter());
    let sql = Sql::on(txn);
    let now = sql.now_as_text();
    sql.update("region_store", &[("seen_at", &now)], own(), "t.region_id = w.region_id").execute(txn).await?;
    Sql::on(txn)
        .text("INSERT INTO region_store (region_id, seen_at) SELECT w.region_id, ")
        .now()
        .text(" FROM ")
        .rows(own())
        .text(" WHERE NOT EXISTS (SELECT 1 FROM region_store AS s WHERE s.region_id = w.region_id)")
        .execute(txn)
        .await?;
    Ok(())
}

/// Cancels replicas that are suspended, so that their image can be removed, and settles the synchronizations that wait for them. Fails
/// if one is not suspended any more.
pub(super) async fn cancel_suspended(txn: &Transaction, image: &ImageId, regions: Vec<RegionId>) -> Result<()> {
    if regions.is_empty() {
        return Ok(());
    }
    let keys = regions.into_iter().map(|region| (image.clone(), region)).collect();
    let locked = replica::lock(txn, keys, Lock::Change).await?;
    let (mut saved, mut ended, mut in_use) = (Vec::new(), Vec::new(), Vec::new());
    for ((image, region), row) in &locked.rows {
        let replica = row.replica()?;
        match replica.apply(Event::Cancel, locked.now) {
            Ok(canceled) if replica.is_suspended() => {
                saved.push(row.followed_by(image, region, &canceled));
                ended.push((image.clone(), synchronization::view(region, &canceled)));
            }
            _ if replica.outcome().is_none() => in_use.push(region.clone()),
            _ => {}
        }
    }
    if !in_use.is_empty() {
        return Err(Error::ImageInUse { image: image.clone(), regions: in_use });
    }
    replica::save(txn, saved).await?;
    synchronization::settle(txn, &ended, locked.now).await
}
