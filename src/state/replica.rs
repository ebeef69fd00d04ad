//! The rows of replicas: read under a lock, changed by the domain's transition, written back, many at a time.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, QueryResult};

use super::{
    Result, State,
    database::{Reader, Session, Transaction},
    entity,
    sql::{Kind, Rows, Sql},
};
use crate::domain::{Event, ImageId, RegionId, RegionStatus, Replica, State as ReplicaState, Timestamp};

/// The key of a replica.
pub(super) type Key = (ImageId, RegionId);

/// How rows are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// To be changed.
    Change,
    /// To stay as they are.
    Keep,
}

/// Rows that are locked, by their keys, and the time by the database's clock.
#[derive(Debug)]
pub(super) struct Locked {
    pub rows: BTreeMap<Key, entity::replica::Model>,
    pub now: Timestamp,
}

/// The columns of a replica, of the table `r`.
const COLUMNS: &str = "r.image_id, r.region_id, r.state, r.due_at, r.attempt, r.faults, r.fence, r.lease_owner, \
    r.suspect, r.bytes_total, r.bytes_copied, r.bytes_skipped, r.fault_kind, r.fault_message, r.started_at, r.finished_at, \
    r.fed_from, r.verification, r.warnings";

/// A row, and the time at which it was read.
#[derive(Debug)]
pub(super) struct Timed {
    pub row: entity::replica::Model,
    pub now: Timestamp,
}

impl FromQueryResult for Timed {
    fn from_query_result(result: &QueryResult, prefix: &str) -> std::result::Result<Self, DbErr> {
        Ok(Self {
            row: entity::replica::Model::from_query_result(result, prefix)?,
            now: Timestamp::from_millis(result.try_get(prefix, "now_millis")?),
        })
    }
}

impl entity::replica::Model {
    pub(super) fn key(&self) -> Result<Key> {
        let image = entity::parse("replica.image_id", &self.image_id)?;
        Ok((image, entity::parse("replica.region_id", &self.region_id)?))
    }

    /// The row after this one, whose replica has gone on.
    pub(super) fn followed_by(&self, image: &ImageId, region: &RegionId, replica: &Replica) -> Self {
        let after = Self::of(image, region, replica);
        // Who feeds a copy is known for as long as it is the same copy.
        let same = after.fence == self.fence && after.lease_owner.is_some();
        Self { fed_from: self.fed_from.clone().filter(|_| same), ..after }
    }
}

/// Begins to read rows of the table `r`, each as a [`Timed`]; goes on behind `FROM`.
pub(super) fn reading(db: &Session<impl ConnectionTrait + Send>) -> Sql {
    Sql::on(db).text("SELECT ").text(COLUMNS).text(", ").now().text(" AS now_millis FROM ")
}

/// Keys, to be handed to a statement.
pub(super) fn handed<'a>(keys: impl IntoIterator<Item = &'a Key>) -> Rows<2> {
    Rows::new(
        [("image_id", Kind::Name), ("region_id", Kind::Name)],
        keys.into_iter().map(|(image, region)| [image.as_str().into(), region.as_str().into()]),
    )
}

/// Locks the rows of some replicas, in the order of their keys: whoever locks several does so in that order, so that nobody
/// waits in a circle.
pub(super) async fn lock(txn: &Transaction, mut keys: Vec<Key>, how: Lock) -> Result<Locked> {
    keys.sort_unstable();
    keys.dedup();
    let sql = reading(txn)
        .rows(handed(&keys))
        .join()
        .text("replica AS r ON r.image_id = w.image_id AND r.region_id = w.region_id ORDER BY r.image_id, r.region_id");
    let sql = match how {
        Lock::Change => sql.lock("r"),
        Lock::Keep => sql.share("r"),
    };
    let read: Vec<Timed> = sql.all(txn).await?;
    let now = read.iter().map(|timed| timed.now).max().unwrap_or(Timestamp::from_millis(0));
    let rows = read.into_iter().map(|timed| Ok((timed.row.key()?, timed.row))).collect::<Result<_>>()?;
    Ok(Locked { rows, now })
}

/// The time, if the claim with that fence has not been overtaken; it can't be until the transaction has ended.
pub(super) async fn held(
    txn: &Transaction,
    image: &ImageId,
    region: &RegionId,
    fence: u64,
) -> Result<Option<Timestamp>> {
    let key: Key = (image.clone(), region.clone());
    let locked = lock(txn, vec![key], Lock::Keep).await?;
    Ok(locked.holds(image, region, fence).then_some(locked.now))
}

impl Locked {
    /// Whether the claim with that fence has not been overtaken; it can't be until the transaction has ended.
    pub(super) fn holds(&self, image: &ImageId, region: &RegionId, fence: u64) -> bool {
        let row = self.rows.get(&(image.clone(), region.clone()));
        row.is_some_and(|row| row.fence == entity::signed(fence) && row.state == RegionStatus::Copying.as_str())
    }
}

/// Writes rows that are locked.
pub(super) async fn save(db: &Session<impl ConnectionTrait + Send>, rows: Vec<entity::replica::Model>) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let columns = [
        ("image_id", Kind::Name),
        ("region_id", Kind::Name),
        ("state", Kind::Name),
        ("due_at", Kind::MaybeNumber),
        ("attempt", Kind::Number),
        ("faults", Kind::Number),
        ("fence", Kind::Number),
        ("lease_owner", Kind::MaybeText),
        ("suspect", Kind::Number),
        ("bytes_total", Kind::Number),
        ("bytes_copied", Kind::Number),
        ("bytes_skipped", Kind::Number),
        ("fault_kind", Kind::MaybeText),
        ("fault_message", Kind::MaybeText),
        ("started_at", Kind::MaybeNumber),
        ("finished_at", Kind::MaybeNumber),
        ("fed_from", Kind::MaybeText),
        ("verification", Kind::MaybeText),
        ("warnings", Kind::MaybeText),
    ];
    let rows = rows.into_iter().map(|row| {
        [
            row.image_id.into(),
            row.region_id.into(),
            row.state.into(),
            row.due_at.into(),
            row.attempt.into(),
            row.faults.into(),
            row.fence.into(),
            row.lease_owner.into(),
            i64::from(row.suspect).into(),
            row.bytes_total.into(),
            row.bytes_copied.into(),
            row.bytes_skipped.into(),
            row.fault_kind.into(),
            row.fault_message.into(),
            row.started_at.into(),
            row.finished_at.into(),
            row.fed_from.into(),
            row.verification.into(),
            row.warnings.into(),
        ]
    });
    let becomes = [
        ("state", "w.state"),
        ("due_at", "w.due_at"),
        ("attempt", "w.attempt"),
        ("faults", "w.faults"),
        ("fence", "w.fence"),
        ("lease_owner", "w.lease_owner"),
        ("suspect", "(w.suspect <> 0)"),
        ("bytes_total", "w.bytes_total"),
        ("bytes_copied", "w.bytes_copied"),
        ("bytes_skipped", "w.bytes_skipped"),
        ("fault_kind", "w.fault_kind"),
        ("fault_message", "w.fault_message"),
        ("started_at", "w.started_at"),
        ("finished_at", "w.finished_at"),
        ("fed_from", "w.fed_from"),
        ("verification", "w.verification"),
        ("warnings", "w.warnings"),
    ];
    let on = "t.image_id = w.image_id AND t.region_id = w.region_id";
    Sql::on(db).update("replica", &becomes, Rows::new(columns, rows), on).execute(db).await?;
    Ok(())
}

impl State {
    /// Whether the claim with that fence is still good, by the database's clock.
    pub async fn replica_holds(&self, image: &ImageId, region: &RegionId, fence: u64) -> Result<bool> {
        let look = async |db: Reader| {
            let db = &db;
            let sql = reading(db)
                .text("replica AS r WHERE r.image_id = ")
                .value(image.as_str())
                .text(" AND r.region_id = ")
                .value(region.as_str());
            Ok(sql.all(db).await?)
        };
        let read: Vec<Timed> = self.0.db.read(look).await?;
        let Some(Timed { row, now }) = read.into_iter().next() else { return Ok(false) };
        let replica = row.replica()?;
        Ok(replica.fence == fence && matches!(&replica.state, ReplicaState::Copying { lease, .. } if lease.until > now))
    }
}

/// Applies an event to replicas for which it still has a place. Returns how many.
pub async fn apply(txn: &Transaction, keys: Vec<Key>, event: &Event) -> Result<usize> {
    let locked = lock(txn, keys, Lock::Change).await?;
    let mut saved = Vec::new();
    for ((image, region), row) in &locked.rows {
        if let Ok(after) = row.replica()?.apply(event.clone(), locked.now) {
            saved.push(row.followed_by(image, region, &after));
        }
    }
    let count = saved.len();
    save(txn, saved).await?;
    Ok(count)
}
