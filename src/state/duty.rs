//! What one process at a time does for all: it is elected by a lease in the database, and another one takes over when that has run
//! out.

use std::time::Duration;

use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect};
use uuid::{NoContext, Timestamp as UuidTime, Uuid};

use super::{
    Result, State,
    entity::{synchronization as sync, synchronization_target as target},
    gate::names,
    group::retrying,
    replica::{self, Lock},
    sql::{Kind, Rows, Sql, now},
};
use crate::domain::{Event, SynchronizationState, Timestamp, WorkerId};

/// How many rows one transaction changes at most.
const BATCH: u64 = 500;

/// The duty of keeping house.
const HOUSEKEEPING: &str = "housekeeping";

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
        let time = now(self.0.db.backend());
        let millis = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        let take = || {
            self.in_time(async {
                let db = &*self.0.db.write().await;
                Sql::on(db)
                    .text("UPDATE duty SET holder = ")
                    .value(who.to_string())
                    .text(&format!(", held_until = {time} + "))
                    .value(millis)
                    .text(" WHERE name = ")
                    .value(HOUSEKEEPING)
                    .text(&format!(" AND (held_until <= {time} OR holder = "))
                    .value(who.to_string())
                    .text(")")
                    .execute(db)
                    .await?;
                let rows = Rows::new(
                    [("name", Kind::Name), ("holder", Kind::Name)],
                    [[HOUSEKEEPING.into(), who.to_string().into()]],
                );
                Sql::on(db)
                    .text(&format!("INSERT INTO duty (name, holder, held_until) SELECT w.name, w.holder, {time} + "))
                    .value(millis)
                    .text(" FROM ")
                    .rows(rows)
                    .text(" WHERE NOT EXISTS (SELECT 1 FROM duty AS d WHERE d.name = w.name)")
                    .execute(db)
                    .await?;
                let held: Vec<Name> = Sql::on(db)
                    .text("SELECT holder FROM duty WHERE name = ")
                    .value(HOUSEKEEPING)
                    .text(&format!(" AND held_until > {time}"))
                    .all(db)
                    .await?;
                Ok(held.iter().any(|name| name.holder == who.to_string()))
            })
        };
        retrying(take).await
    }

    /// Gives the duty up, so that another process need not wait for the lease.
    pub async fn housekeeping_leave(&self, who: &WorkerId) -> Result<()> {
        self.in_time(async {
            let db = &*self.0.db.write().await;
            Sql::on(db)
                .text("UPDATE duty SET held_until = 0 WHERE name = ")
                .value(HOUSEKEEPING)
                .text(" AND holder = ")
                .value(who.to_string())
                .execute(db)
                .await?;
            Ok(())
        })
        .await
    }

    /// Hands back replicas whose workers have not been heard of, and that nobody has claimed since: those of regions that no worker
    /// serves would be shown as being copied for ever. Returns how many.
    pub async fn replica_rescue(&self) -> Result<usize> {
        let rescued = retrying(|| self.in_time(self.rescue_once())).await?;
        if rescued > 0 {
            self.0.signals.changed();
            self.0.signals.due();
        }
        Ok(rescued)
    }

    async fn rescue_once(&self) -> Result<usize> {
        let db = &self.0.db.read;
        let left: Vec<replica::Timed> = replica::reading(db)
            .rows(names("id", self.0.regions.iter()))
            .join()
            .text("replica AS r ON r.region_id = w.id AND r.state = 'COPYING' AND r.due_at <= ")
            .now()
            .text(" LIMIT ")
            .value(BATCH)
            .all(db)
            .await?;
        let keys: Vec<replica::Key> = left.iter().map(|timed| timed.row.key()).collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(0);
        }
        let txn = self.write().await?;
        let locked = replica::lock(&txn, keys, Lock::Change).await?;
        let mut saved = Vec::new();
        for ((image, region), row) in &locked.rows {
            if let Ok(after) = row.replica()?.apply(Event::Expire, locked.now) {
                saved.push(row.followed_by(image, region, &after));
            }
        }
        let rescued = saved.len();
        replica::save(&txn, saved).await?;
        txn.commit().await?;
        Ok(rescued)
    }

    /// Forgets synchronizations that have ended longer ago than `keep`, some at a time. Returns how many; with fewer than it could
    /// have been, there are no more.
    pub async fn synchronization_prune(&self, keep: Duration) -> Result<(usize, bool)> {
        retrying(|| self.in_time(self.prune_once(keep))).await
    }

    async fn prune_once(&self, keep: Duration) -> Result<(usize, bool)> {
        let txn = self.write().await?;
        let read: Vec<Millis> = Sql::on(&txn).text("SELECT ").now().text(" AS now_millis").all(&txn).await?;
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
            .all(&txn)
            .await?;
        if ids.is_empty() {
            return Ok((0, false));
        }
        target::Entity::delete_many().filter(target::Column::RequestId.is_in(ids.iter().copied())).exec(&txn).await?;
        sync::Entity::delete_many().filter(sync::Column::RequestId.is_in(ids.iter().copied())).exec(&txn).await?;
        txn.commit().await?;
        Ok((ids.len(), ids.len() as u64 == BATCH))
    }
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
