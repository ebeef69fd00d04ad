//! Maintenance that the leader runs: requeuing copies with expired leases, restarting waits after the clock was set
//! back, and pruning.

use std::{sync::PoisonError, time::Duration};

use domain::{ClockState, Event, SynchronizationState, Timestamp};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::{Builder, Uuid};

use super::{
    Db, Result,
    connections::{Reader, Transaction, elapsed_since_boot},
    entity::{self, columns::Number, synchronization as sync, synchronization_target as target},
    region_capacity::region_rows,
    region_store, replica, sql,
};

/// Maximum number of rows that one transaction changes.
const BATCH: u64 = 500;

impl Db {
    /// Requeues copies whose leases have expired and that no worker has claimed since. Without this, copies to regions
    /// that no worker serves would appear to be running forever. Returns the number of requeued copies.
    pub async fn requeue_expired(&self) -> Result<usize> {
        let requeued = self.expire_leases().await?;
        if requeued > 0 {
            self.0.signals.notify_changed();
            self.0.signals.notify_due();
        }
        Ok(requeued)
    }

    async fn expire_leases(&self) -> Result<usize> {
        let find = async |reader: Reader| {
            let reader = &reader;
            let expired = replica::select_timed(reader)
                .rows(region_rows("id", self.0.regions.iter()))
                .join()
                .text("replica AS r ON r.region_id = w.id AND r.state = 'COPYING' AND r.due_at <= ")
                .now()
                .text(" LIMIT ")
                .value(BATCH);
            Ok(expired.all(reader).await?)
        };
        let expired: Vec<replica::TimedRow> = self.0.connections.read(find).await?;
        let keys: Vec<replica::Key> = expired.iter().map(|timed| timed.row.key()).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        self.0.connections.transaction(async |txn| replica::apply(&txn, keys.clone(), &Event::Expire).await).await
    }

    /// Deletes synchronizations that ended longer ago than `keep`, a batch at a time. Returns the number of deleted
    /// synchronizations, and whether there may be more to delete.
    pub async fn synchronization_prune(&self, keep: Duration) -> Result<(usize, bool)> {
        if !self.is_clock_steady().await? {
            return Ok((0, false));
        }
        self.0.connections.transaction(async |txn| prune(&txn, keep).await).await
    }

    /// Whether the database's clock runs steadily. Pruning pauses after the clock was set: the new time may be
    /// corrected, and deleted rows cannot be restored.
    pub(super) async fn is_clock_steady(&self) -> Result<bool> {
        let now = self.time().await?;
        let mut watch = self.0.clock_watch.lock().unwrap_or_else(PoisonError::into_inner);
        let state = watch.observe(now, elapsed_since_boot());
        if state == ClockState::JustSet {
            tracing::warn!(%now, "the database's clock was set; pruning pauses for an hour or until it is corrected");
        }
        Ok(state == ClockState::Steady)
    }

    /// Corrects times that lie too far ahead because the database's clock was set back. Restarts waits that began in
    /// the future, shortens leases that end later than any valid lease, and records regions as seen now at the latest.
    /// Returns the number of changed replicas. `lease` is the duration of leases.
    pub async fn restart_waits(&self, lease: Duration) -> Result<usize> {
        let lease_millis = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        if self.region_stores().await?.iter().any(|store| store.is_ahead) {
            self.0.connections.transaction(async |txn| region_store::clamp_seen(&txn).await).await?;
        }
        let find = async |reader: Reader| {
            let ahead = replica::select_timed(&reader)
                .rows(region_rows("id", self.0.regions.iter()))
                .join()
                .text("replica AS r ON r.region_id = w.id AND r.due_at > ")
                .now()
                .text(" + ")
                .value(lease_millis)
                .text(" AND (r.state = 'COPYING' OR (r.due_at < ")
                .value(entity::replica::SUSPENDED)
                .text(" AND COALESCE(r.waiting_since, r.due_at) > ")
                .now()
                .text(")) ORDER BY r.due_at DESC LIMIT ")
                .value(BATCH);
            Ok(ahead.all(&reader).await?)
        };
        let ahead: Vec<replica::TimedRow> = self.0.connections.read(find).await?;
        let event = Event::ClockSetBack { lease };
        let mut keys = Vec::new();
        for replica::TimedRow { row, now } in ahead {
            if row.replica()?.apply(event.clone(), now).is_ok() {
                keys.push(row.key());
            }
        }
        if keys.is_empty() {
            return Ok(0);
        }
        let changed =
            self.0.connections.transaction(async |txn| replica::apply(&txn, keys.clone(), &event).await).await?;
        self.0.signals.notify_due();
        Ok(changed)
    }
}

async fn prune(txn: &Transaction, keep: Duration) -> Result<(usize, bool)> {
    let until = sql::database_time(txn).await?.before(keep).max(Timestamp::from_millis(0));
    // Ids begin with the time of the request, and no synchronization ends before it was requested.
    let ids: Vec<Uuid> = sync::Entity::find()
        .select_only()
        .column(sync::Column::RequestId)
        .filter(sync::Column::RequestId.lt(first_id_at(until)))
        .filter(sync::Column::State.ne(SynchronizationState::Running.as_str()))
        .filter(sync::Column::FinishedAt.lt(Number(until)))
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

/// Returns the smallest id of a request at that time (RFC 9562, section 5.7).
fn first_id_at(time: Timestamp) -> Uuid {
    Builder::from_unix_timestamp_millis(time.as_millis().unsigned_abs(), &[0; 10]).into_uuid()
}
