//! What one process at a time does for all: it is elected by a lease in the database, and another one takes over when that has run
//! out.

use std::{sync::PoisonError, time::Duration};

use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect};
use uuid::{NoContext, Timestamp as UuidTime, Uuid};

use super::{
    Result, State,
    database::{Reader, Transaction, passed},
    entity::{synchronization as sync, synchronization_target as target},
    gate::names,
    region_store, replica,
    sql::{Kind, Rows, Sql},
};
use crate::domain::{Belief, Event, SynchronizationState, Timestamp, WorkerId};

/// How many rows one transaction changes at most.
const BATCH: u64 = 500;

/// The duty of keeping house.
const HOUSEKEEPING: &str = "housekeeping";

/// How many leases ahead the end of a lease can't be meant: processes may be configured with leases that differ a little.
const FAR: i64 = 3;

#[derive(FromQueryResult)]
struct Millis {
    now_millis: i64,
}

#[derive(FromQueryResult)]
struct Name {
    holder: String,
}

impl State {
    /// Takes the duty of keeping house for some time, or renews it. Returns whether it is the caller's now.
    pub async fn housekeeping_take(&self, who: &WorkerId, lease: Duration) -> Result<bool> {
        let millis = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        self.0.db.transaction(async |txn| take(&txn, who, millis).await).await
    }

    /// Gives the duty up, so that another process need not wait for the lease.
    pub async fn housekeeping_leave(&self, who: &WorkerId) -> Result<()> {
        let leave = async |txn: Transaction| {
            let txn = &txn;
            Sql::on(txn)
                .text("UPDATE duty SET held_until = 0 WHERE name = ")
                .value(HOUSEKEEPING)
                .text(" AND holder = ")
                .value(who.to_string())
                .execute(txn)
                .await?;
            Ok(())
        };
        self.0.db.transaction(leave).await
    }

    /// Hands back replicas whose workers have not been heard of, and that nobody has claimed since: those of regions that no worker
    /// serves would be shown as being copied for ever. Returns how many.
    pub async fn replica_rescue(&self) -> Result<usize> {
        let rescued = self.rescue().await?;
        if rescued > 0 {
            self.0.signals.changed();
            self.0.signals.due();
        }
        Ok(rescued)
    }

    async fn rescue(&self) -> Result<usize> {
        let look = async |db: Reader| {
            let db = &db;
            let left = replica::reading(db)
                .rows(names("id", self.0.regions.iter()))
                .join()
                .text("replica AS r ON r.region_id = w.id AND r.state = 'COPYING' AND r.due_at <= ")
                .now()
                .text(" LIMIT ")
                .value(BATCH);
            Ok(left.all(db).await?)
        };
        let left: Vec<replica::Timed> = self.0.db.read(look).await?;
        let keys: Vec<replica::Key> = left.iter().map(|timed| timed.row.key()).collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(0);
        }
        self.0.db.transaction(async |txn| replica::apply(&txn, keys.clone(), &Event::Expire).await).await
    }

    /// Forgets synchronizations that have ended longer ago than `keep`, some at a time. Returns how many; with fewer than it could
    /// have been, there are no more.
    pub async fn synchronization_prune(&self, keep: Duration) -> Result<(usize, bool)> {
        if !self.clock_is_steady().await? {
            return Ok((0, false));
        }
        self.0.db.transaction(async |txn| prune(&txn, keep).await).await
    }

    /// Whether the database's clock goes as time does. After it was set, nothing is forgotten by it for a while: it may be set right
    /// again, and what has been forgotten does not come back.
    pub(super) async fn clock_is_steady(&self) -> Result<bool> {
        let now = self.time().await?;
        let belief = self.0.clock.lock().unwrap_or_else(PoisonError::into_inner).look(now, passed());
        if belief == Belief::JustSet {
            tracing::warn!(%now, "the database's clock was set; nothing is pruned by it for an hour, or until it is set right");
        }
        Ok(belief == Belief::Steady)
    }

    /// Shortens waits that lie further ahead than they can have been meant to, because the database's clock was set back since; regions were
    /// seen now at the latest. Returns how many replicas have changed. `lease` is how long leases last, `longest_wait` the longest wait before an
    /// attempt is repeated.
    pub async fn replica_pull_back(&self, lease: Duration, longest_wait: Duration) -> Result<usize> {
        let ahead = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        if self.region_stores().await?.iter().any(|store| store.is_ahead) {
            self.0.db.transaction(async |txn| region_store::pull_back(&txn).await).await?;
        }
        let look = async |db: Reader| {
            let far = replica::reading(&db)
                .rows(names("id", self.0.regions.iter()))
                .join()
                .text("replica AS r ON r.region_id = w.id AND r.due_at > ")
                .now()
                .text(" + ")
                .value(ahead)
                .text(" ORDER BY r.due_at DESC LIMIT ")
                .value(BATCH);
            Ok(far.all(&db).await?)
        };
        let far: Vec<replica::Timed> = self.0.db.read(look).await?;
        let event = Event::ClockSetBack { lease, longest_wait };
        let mut keys = Vec::new();
        for replica::Timed { row, now } in far {
            if row.replica()?.apply(event.clone(), now).is_ok() {
                keys.push(row.key()?);
            }
        }
        if keys.is_empty() {
            return Ok(0);
        }
        let pulled = self.0.db.transaction(async |txn| replica::apply(&txn, keys.clone(), &event).await).await?;
        self.0.signals.due();
        Ok(pulled)
    }
}

/// Takes the duty, or renews it. Returns whether it is the caller's now.
async fn take(txn: &Transaction, who: &WorkerId, millis: i64) -> Result<bool> {
    // A holder that was to have it for so long has it since before the clock was set back, and may be gone.
    Sql::on(txn)
        .text("UPDATE duty SET held_until = ")
        .now()
        .text(" + ")
        .value(millis)
        .text(" WHERE name = ")
        .value(HOUSEKEEPING)
        .text(" AND held_until > ")
        .now()
        .text(" + ")
        .value(millis.saturating_mul(FAR))
        .execute(txn)
        .await?;
    Sql::on(txn)
        .text("UPDATE duty SET holder = ")
        .value(who.to_string())
        .text(", held_until = ")
        .now()
        .text(" + ")
        .value(millis)
        .text(" WHERE name = ")
        .value(HOUSEKEEPING)
        .text(" AND (held_until <= ")
        .now()
        .text(" OR holder = ")
        .value(who.to_string())
        .text(")")
        .execute(txn)
        .await?;
    let columns = [("name", Kind::Name), ("holder", Kind::Name)];
    let rows = Rows::new(columns, [[HOUSEKEEPING.into(), who.to_string().into()]]);
    Sql::on(txn)
        .text("INSERT INTO duty (name, holder, held_until) SELECT w.name, w.holder, ")
        .now()
        .text(" + ")
        .value(millis)
        .text(" FROM ")
        .rows(rows)
        .text(" WHERE NOT EXISTS (SELECT 1 FROM duty AS d WHERE d.name = w.name)")
        .execute(txn)
        .await?;
    let held: Vec<Name> = Sql::on(txn)
        .text("SELECT holder FROM duty WHERE name = ")
        .value(HOUSEKEEPING)
        .text(" AND held_until > ")
        .now()
        .all(txn)
        .await?;
    Ok(held.iter().any(|name| name.holder == who.to_string()))
}

async fn prune(txn: &Transaction, keep: Duration) -> Result<(usize, bool)> {
    let read: Vec<Millis> = Sql::on(txn).text("SELECT ").now().text(" AS now_millis").all(txn).await?;
    let time = read.first().map_or(0, |read| read.now_millis);
    let until = time.saturating_sub(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX)).max(0);
    // Ids begin with the time at which they were made: what was accepted later has not ended before.
    let newest = newest_before(Timestamp::from_millis(until));
    let ids: Vec<Uuid> = sync::Entity::find()
        .select_only()
        .column(sync::Column::RequestId)
        .filter(sync::Column::RequestId.lt(newest))
        .filter(sync::Column::State.ne(SynchronizationState::Running.as_str()))
        .filter(sync::Column::FinishedAt.lt(until))
        .order_by_asc(sync::Column::RequestId)
        .limit(BATCH)
        .into_tuple()
        .all(txn)
        .await?;
    if ids.is_empty() {
        return Ok((0, false));
    }
    target::Entity::delete_many().filter(target::Column::RequestId.is_in(ids.iter().copied())).exec(txn).await?;
    sync::Entity::delete_many().filter(sync::Column::RequestId.is_in(ids.iter().copied())).exec(txn).await?;
    Ok((ids.len(), ids.len() as u64 == BATCH))
}

/// The least id that is made at a time.
fn newest_before(time: Timestamp) -> Uuid {
    let millis = time.as_millis().unsigned_abs();
    let nanos = u32::try_from(millis % 1_000).unwrap_or_default() * 1_000_000;
    let made = Uuid::new_v7(UuidTime::from_unix(NoContext, millis / 1_000, nanos));
    let mut bytes = *made.as_bytes();
    // Behind the time, only what marks the version and the variant.
    bytes[6] = 0x70;
    bytes[7] = 0;
    bytes[8] = 0x80;
    bytes[9..].fill(0);
    Uuid::from_bytes(bytes)
}
