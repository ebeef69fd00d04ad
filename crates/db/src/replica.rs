//! Rows of replicas: locked, changed by the domain's state machine, and written back in batches.

use std::collections::BTreeMap;

use domain::{Event, ImageId, RegionId, RegionStatus, Replica, ReplicaState, Timestamp};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, IdenStatic as _, Iterable as _, QueryResult};

use super::{
    Db, Result,
    connections::{Reader, Session, Transaction},
    entity::{self, columns::Number, replica::Column},
    sql::{ColumnKind, Rows, Sql},
};

/// Key of a replica.
pub(super) type Key = (ImageId, RegionId);

/// Strength of a row lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Held by one transaction, which updates the rows.
    Update,
    /// Held by any number of transactions, which rely on the rows.
    Share,
}

/// Locked rows by key, and the time of the database's clock.
#[derive(Debug)]
pub(super) struct Locked {
    pub rows: BTreeMap<Key, entity::replica::Model>,
    pub now: Timestamp,
}

/// A row and the time at which it was read.
#[derive(Debug)]
pub(super) struct TimedRow {
    pub row: entity::replica::Model,
    pub now: Timestamp,
}

impl FromQueryResult for TimedRow {
    fn from_query_result(result: &QueryResult, prefix: &str) -> std::result::Result<Self, DbErr> {
        Ok(Self {
            row: entity::replica::Model::from_query_result(result, prefix)?,
            now: result.try_get::<Number<Timestamp>>(prefix, "now_millis")?.0,
        })
    }
}

impl entity::replica::Model {
    /// Returns the row after a transition. Keeps the source of a copy as long as the same claim runs the copy.
    pub(super) fn successor(&self, image: &ImageId, region: &RegionId, replica: &Replica) -> Self {
        let after = Self::from_replica(image, region, replica);
        let is_same_claim = after.fence == self.fence && after.lease_owner.is_some();
        Self { fed_from: self.fed_from.clone().filter(|_| is_same_claim), ..after }
    }
}

/// Begins a statement that selects rows of the table alias `r` as [`TimedRow`]s. The text ends with `FROM`.
pub(super) fn select_timed(session: &Session<impl ConnectionTrait + Send>) -> Sql {
    let columns: Vec<String> = Column::iter().map(|column| format!("r.{}", column.as_str())).collect();
    Sql::new(session).text("SELECT ").text(&columns.join(", ")).text(", ").now().text(" AS now_millis FROM ")
}

/// Converts keys to rows for a statement.
pub(super) fn key_rows<'a>(keys: impl IntoIterator<Item = &'a Key>) -> Rows {
    Rows::new(
        [("image_id", ColumnKind::Name), ("region_id", ColumnKind::Name)],
        keys.into_iter().map(|(image, region)| [image.as_str().into(), region.as_str().into()]),
    )
}

/// Locks the rows of some replicas in the order of their keys, as every transaction does, to avoid deadlocks.
pub(super) async fn lock(txn: &Transaction, mut keys: Vec<Key>, strength: Lock) -> Result<Locked> {
    keys.sort_unstable();
    keys.dedup();
    let sql = select_timed(txn)
        .rows(key_rows(&keys))
        .join()
        .text("replica AS r ON r.image_id = w.image_id AND r.region_id = w.region_id ORDER BY r.image_id, r.region_id");
    let sql = match strength {
        Lock::Update => sql.lock("r"),
        Lock::Share => sql.lock_share("r"),
    };
    let rows: Vec<TimedRow> = sql.all(txn).await?;
    let now = rows.iter().map(|timed| timed.now).max().unwrap_or(Timestamp::from_millis(0));
    let rows = rows.into_iter().map(|timed| (timed.row.key(), timed.row)).collect();
    Ok(Locked { rows, now })
}

/// Returns the time if the fence is the replica's current one, and `None` otherwise. A current fence stays current
/// until the transaction ends.
pub(super) async fn check_fence(
    txn: &Transaction,
    image: &ImageId,
    region: &RegionId,
    fence: u64,
) -> Result<Option<Timestamp>> {
    let key: Key = (image.clone(), region.clone());
    let locked = lock(txn, vec![key], Lock::Share).await?;
    Ok(locked.has_claim(image, region, fence).then_some(locked.now))
}

impl Locked {
    /// Whether the claim with that fence still runs the copy.
    pub(super) fn has_claim(&self, image: &ImageId, region: &RegionId, fence: u64) -> bool {
        let row = self.rows.get(&(image.clone(), region.clone()));
        row.is_some_and(|row| row.fence.0 == fence && row.state.0 == RegionStatus::Copying)
    }
}

/// Writes locked rows.
pub(super) async fn save(
    session: &Session<impl ConnectionTrait + Send>,
    rows: Vec<entity::replica::Model>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let values: Vec<(&str, String)> = Column::iter()
        .filter(|column| !matches!(column, Column::ImageId | Column::RegionId))
        .map(|column| (column.as_str(), format!("w.{}", column.as_str())))
        .collect();
    let assignments: Vec<(&str, &str)> = values.iter().map(|(column, value)| (*column, value.as_str())).collect();
    let on = "t.image_id = w.image_id AND t.region_id = w.region_id";
    Sql::new(session).update("replica", &assignments, Rows::from_models(rows), on).execute(session).await?;
    Ok(())
}

impl Db {
    /// Whether the lease of the claim with that fence has not expired by the database's clock.
    pub async fn replica_holds(&self, image: &ImageId, region: &RegionId, fence: u64) -> Result<bool> {
        let read = async |reader: Reader| {
            let sql = select_timed(&reader)
                .text("replica AS r WHERE r.image_id = ")
                .value(image.as_str())
                .text(" AND r.region_id = ")
                .value(region.as_str());
            Ok(sql.all(&reader).await?)
        };
        let rows: Vec<TimedRow> = self.0.connections.read(read).await?;
        let Some(TimedRow { row, now }) = rows.into_iter().next() else { return Ok(false) };
        let replica = row.replica()?;
        Ok(replica.fence == fence && matches!(&replica.state, ReplicaState::Copying { lease, .. } if lease.until > now))
    }
}

/// Applies an event to every replica that accepts it. Returns the number of changed replicas.
pub async fn apply(txn: &Transaction, keys: Vec<Key>, event: &Event) -> Result<usize> {
    let locked = lock(txn, keys, Lock::Update).await?;
    let mut changed = Vec::new();
    for ((image, region), row) in &locked.rows {
        if let Ok(after) = row.replica()?.apply(event.clone(), locked.now) {
            changed.push(row.successor(image, region, &after));
        }
    }
    let count = changed.len();
    save(txn, changed).await?;
    Ok(count)
}
