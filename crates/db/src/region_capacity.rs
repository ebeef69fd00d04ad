//! Limits on the copies into and out of regions, over all processes. A transaction that counts the copies of a limited
//! region in order to start more copies locks the region's row of the table `region_lock` until it commits.

use std::collections::{BTreeMap, BTreeSet};

use domain::{ImageId, RegionId, WorkerId};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, FromQueryResult, QueryFilter as _, QueryOrder as _,
    QuerySelect, Select, Set,
    sea_query::{LockBehavior, LockType, OnConflict},
};

use super::{
    Db, Result,
    connections::{Session, Transaction},
    entity::{columns::Number, region_lock, replica::Text},
    sql::{ColumnKind, Rows, Sql},
};

impl Db {
    /// Reserves a source for claimed replicas of an image. Each item of `feeds` is the destination, the fence of its
    /// claim, and the source. Returns the destinations that may copy now. `limits` states the maximum number of copies
    /// that a source serves over all processes.
    pub async fn reserve_egress(
        &self,
        image: &ImageId,
        feeds: &[(RegionId, u64, RegionId)],
        limits: &BTreeMap<RegionId, usize>,
    ) -> Result<Vec<RegionId>> {
        self.create_region_locks().await?;
        self.0.connections.transaction(async |txn| self.reserve(&txn, image, feeds, limits).await).await
    }

    async fn reserve(
        &self,
        txn: &Transaction,
        image: &ImageId,
        feeds: &[(RegionId, u64, RegionId)],
        limits: &BTreeMap<RegionId, usize>,
    ) -> Result<Vec<RegionId>> {
        let sources: BTreeSet<&RegionId> = feeds.iter().map(|(_, _, source)| source).collect();
        lock_regions(txn, sources.iter().copied(), QuerySelect::lock_exclusive).await?;
        let mut copies: BTreeMap<RegionId, usize> = BTreeMap::new();
        for in_flight in count_copies(txn, self.0.regions.iter(), None).await? {
            if let Some(source) = in_flight.from {
                *copies.entry(source).or_default() += usize::try_from(in_flight.copies).unwrap_or(usize::MAX);
            }
        }
        let mut granted = Vec::new();
        let mut rows = Vec::new();
        for (region, fence, source) in feeds {
            let copies = copies.entry(source.clone()).or_default();
            if *copies < limits.get(source).copied().unwrap_or(usize::MAX) {
                *copies += 1;
                granted.push(region.clone());
                let fence = Number(*fence);
                rows.push([image.as_str().into(), region.as_str().into(), fence.into(), source.as_str().into()]);
            }
        }
        if rows.is_empty() {
            return Ok(granted);
        }
        let columns = [
            ("image_id", ColumnKind::Name),
            ("region_id", ColumnKind::Name),
            ("fence", ColumnKind::Number),
            ("fed_from", ColumnKind::Name),
        ];
        let on = "t.image_id = w.image_id AND t.region_id = w.region_id AND t.fence = w.fence AND t.state = 'COPYING'";
        Sql::new(txn)
            .update("replica", &[("fed_from", "w.fed_from")], Rows::new(columns, rows), on)
            .execute(txn)
            .await?;
        Ok(granted)
    }

    /// Counts the copies in flight over all processes. Copies of `owner` are reported as the caller's own.
    pub async fn copies_in_flight(&self, owner: &WorkerId) -> Result<Vec<CopiesInFlight>> {
        let count = async |reader| count_copies(&reader, self.0.regions.iter(), Some(owner)).await;
        self.0.connections.read(count).await
    }

    /// Creates the rows of `region_lock` for the configured regions, once in the life of a process.
    pub(super) async fn create_region_locks(&self) -> Result<()> {
        use region_lock::{ActiveModel, Column, Entity};
        if self.0.region_locks.initialized() {
            return Ok(());
        }
        let create = async |txn: Transaction| {
            let existing: BTreeSet<RegionId> =
                Entity::find().all(&txn).await?.into_iter().map(|row| row.region_id.0).collect();
            let missing = self.0.regions.iter().filter(|region| !existing.contains(*region));
            let rows: Vec<_> = missing.map(|region| ActiveModel { region_id: Set(region.clone().into()) }).collect();
            if !rows.is_empty() {
                let conflict = OnConflict::column(Column::RegionId).update_column(Column::RegionId).to_owned();
                Entity::insert_many(rows).on_conflict(conflict).exec_without_returning(&txn).await?;
            }
            Ok(())
        };
        self.0.region_locks.get_or_try_init(|| self.0.connections.transaction(create)).await.copied()
    }
}

/// Number of copies in flight from one region to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiesInFlight {
    /// The destination.
    pub to: RegionId,
    /// The source, if it is recorded.
    pub from: Option<RegionId>,
    /// Whether the caller runs these copies.
    pub is_own: bool,
    /// Number of these copies.
    pub copies: u32,
}

/// Converts region ids to rows for a statement.
pub(super) fn region_rows<'a>(column: &'static str, regions: impl Iterator<Item = &'a RegionId>) -> Rows {
    Rows::new([(column, ColumnKind::Name)], regions.map(|region| [region.as_str().into()]))
}

/// Counts the copies in flight into some regions.
async fn count_copies<'a>(
    session: &Session<impl ConnectionTrait + Send>,
    regions: impl Iterator<Item = &'a RegionId>,
    owner: Option<&WorkerId>,
) -> Result<Vec<CopiesInFlight>> {
    #[derive(FromQueryResult)]
    struct Row {
        region_id: Text<RegionId>,
        fed_from: Option<Text<RegionId>>,
        lease_owner: Option<String>,
        copies: i64,
    }
    let rows: Vec<Row> = Sql::new(session)
        .text("SELECT r.region_id, r.fed_from, r.lease_owner, COUNT(*) AS copies FROM ")
        .rows(region_rows("id", regions))
        .join()
        .text("replica AS r ON r.region_id = w.id AND r.state = 'COPYING' AND r.due_at > ")
        .now()
        .text(" GROUP BY r.region_id, r.fed_from, r.lease_owner")
        .all(session)
        .await?;
    let in_flight = rows.into_iter().map(|row| CopiesInFlight {
        to: row.region_id.0,
        from: row.fed_from.map(|from| from.0),
        is_own: owner.is_some_and(|owner| row.lease_owner.as_deref() == Some(&*owner.0)),
        copies: u32::try_from(row.copies).unwrap_or(u32::MAX),
    });
    Ok(in_flight.collect())
}

/// Number of further copies that each region accepts. Regions without an entry accept any number.
pub(super) struct Capacity(BTreeMap<RegionId, usize>);

impl Capacity {
    /// Counts the copies into those due regions that have a limit, and locks these regions for the transaction. A
    /// region for which another process is claiming copies has no capacity.
    pub async fn measure(txn: &Transaction, limits: &BTreeMap<RegionId, usize>, due: &[RegionId]) -> Result<Self> {
        let limited: Vec<&RegionId> = due.iter().filter(|region| limits.contains_key(*region)).collect();
        // Other regions of a claimed image may be limited too. They are not locked, so their capacity is 0.
        let mut capacity: BTreeMap<RegionId, usize> = limits.keys().map(|region| (region.clone(), 0)).collect();
        if limited.is_empty() {
            return Ok(Self(capacity));
        }
        let skip_locked =
            |rows: Select<region_lock::Entity>| rows.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        let locked = lock_regions(txn, limited.iter().copied(), skip_locked).await?;
        let in_flight = count_copies(txn, limited.iter().copied(), None).await?;
        for region in locked {
            let copies: u32 = in_flight.iter().filter(|copies| copies.to == region).map(|copies| copies.copies).sum();
            let limit = limits.get(&region).copied().unwrap_or(usize::MAX);
            capacity.insert(region, limit.saturating_sub(usize::try_from(copies).unwrap_or(usize::MAX)));
        }
        Ok(Self(capacity))
    }

    /// Lowers the capacity of regions to the given numbers.
    pub fn restrict<'a>(&mut self, limits: impl Iterator<Item = (&'a RegionId, usize)>) {
        for (region, limit) in limits {
            let capacity = self.of(region).min(limit);
            self.0.insert(region.clone(), capacity);
        }
    }

    /// Returns the capacity of a region.
    pub fn of(&self, region: &RegionId) -> usize {
        self.0.get(region).copied().unwrap_or(usize::MAX)
    }

    /// Uses the capacity for one copy.
    pub fn reserve(&mut self, region: &RegionId) {
        if let Some(capacity) = self.0.get_mut(region) {
            *capacity = capacity.saturating_sub(1);
        }
    }
}

/// Locks regions in the order of their ids. Returns the locked ones.
async fn lock_regions<'a>(
    txn: &Transaction,
    regions: impl Iterator<Item = &'a RegionId>,
    lock: impl FnOnce(Select<region_lock::Entity>) -> Select<region_lock::Entity>,
) -> Result<Vec<RegionId>> {
    use region_lock::{Column, Entity};
    let rows = Entity::find().filter(Column::RegionId.is_in(regions.map(RegionId::as_str)));
    let rows = lock(rows.order_by_asc(Column::RegionId)).all(txn).await?;
    Ok(rows.into_iter().map(|row| row.region_id.0).collect())
}
