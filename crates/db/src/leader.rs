//! Leader election by a lease in the database: one process at a time runs the maintenance, and another one takes over
//! once the lease has expired.

use std::time::Duration;

use domain::{Timestamp, WorkerId};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, IntoActiveModel as _, QueryFilter as _, QuerySelect as _, sea_query::Expr,
};

use super::{
    Db, Result,
    connections::Transaction,
    entity::{
        columns::Number,
        leader_lease::{self, Column, Entity},
    },
    sql,
};

/// Name of the only lease.
const MAINTENANCE: &str = "maintenance";

/// Maximum remaining time of a valid lease, in lease durations. A lease that expires later was written before the clock
/// was set back. The factor allows for processes with slightly different lease durations.
const MAX_LEASES_AHEAD: u32 = 3;

impl Db {
    /// Acquires or renews the leader's lease. Returns whether `candidate` holds it now.
    pub async fn leader_acquire(&self, candidate: &WorkerId, lease: Duration) -> Result<bool> {
        self.0.connections.transaction(async |txn| acquire(&txn, candidate, lease).await).await
    }

    /// Releases the leader's lease, so that another process need not wait until it expires.
    pub async fn leader_resign(&self, leader: &WorkerId) -> Result<()> {
        let resign = async |txn: Transaction| {
            Entity::update_many()
                .col_expr(Column::ExpiresAt, Expr::value(0_i64))
                .filter(Column::Name.eq(MAINTENANCE))
                .filter(Column::Holder.eq(leader.to_string()))
                .exec(&txn)
                .await?;
            Ok(())
        };
        self.0.connections.transaction(resign).await
    }
}

async fn acquire(txn: &Transaction, candidate: &WorkerId, lease: Duration) -> Result<bool> {
    let now = sql::database_time(txn).await?;
    let current = Entity::find_by_id(MAINTENANCE).lock_exclusive().one(txn).await?;
    let expires_at = Number(now.after(lease));
    let Some(current) = current else {
        // If two processes insert at the same time, one of them gets a conflict and retries.
        let row = leader_lease::Model { name: MAINTENANCE.to_owned(), holder: candidate.to_string(), expires_at };
        Entity::insert(row.into_active_model()).exec_without_returning(txn).await?;
        return Ok(true);
    };
    let holder = holder(&current, candidate, lease, now);
    if let Some(holder) = &holder {
        Entity::update_many()
            .col_expr(Column::Holder, Expr::value(holder.as_str()))
            .col_expr(Column::ExpiresAt, Expr::value(expires_at))
            .filter(Column::Name.eq(MAINTENANCE))
            .exec(txn)
            .await?;
    }
    Ok(holder.as_deref() == Some(&*candidate.0))
}

/// Returns the holder to write with a lease from now, or `None` if another process holds an unexpired lease. A lease
/// that expires too far in the future, because the clock was set back, is shortened: its holder may have crashed.
fn holder(current: &leader_lease::Model, candidate: &WorkerId, lease: Duration, now: Timestamp) -> Option<String> {
    if current.holder == *candidate.0 || current.expires_at.0 <= now {
        return Some(candidate.to_string());
    }
    let is_too_far_ahead = current.expires_at.0 > now.after(lease * MAX_LEASES_AHEAD);
    is_too_far_ahead.then(|| current.holder.clone())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use domain::{Timestamp, WorkerId};

    use super::{MAINTENANCE, Number, holder, leader_lease::Model};

    #[test]
    fn a_lease_is_renewed_taken_over_once_expired_and_shortened_after_the_clock_was_set_back() {
        let (now, lease) = (Timestamp::from_millis(1_000_000), Duration::from_secs(10));
        let next = |name: &str, expires_in: i64| {
            let expires_at = Number(Timestamp::from_millis(now.as_millis() + expires_in));
            let current = Model { name: MAINTENANCE.to_owned(), holder: name.to_owned(), expires_at };
            holder(&current, &WorkerId("a".into()), lease, now)
        };
        assert_eq!(next("a", 5_000).as_deref(), Some("a"), "renewed");
        assert_eq!(next("b", 5_000), None, "held by another process");
        assert_eq!(next("b", 30_000), None, "leases may differ a little");
        assert_eq!(next("b", 30_001).as_deref(), Some("b"), "shortened");
        assert_eq!(next("b", 0).as_deref(), Some("a"), "expired");
    }
}
