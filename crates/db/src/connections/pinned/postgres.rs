//! A connection to PostgreSQL that one task keeps.
//!
//! The pool checks a connection with a round trip whenever it is returned, and hands connections out in turns. Each is
//! a process of the server with caches of its own, so a task that queries continuously keeps one.
//!
//! These tasks write one after the other: two that insert into the same tables at the same time contend for their pages
//! and for the write-ahead log, and each waits for the other in its midst. Reads are not delayed.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use sea_orm::{
    DbErr, ExecResult, QueryResult, Statement,
    sqlx::{self, PgConnection, PgPool, Postgres, pool::PoolConnection},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    super::{
        failover::FailoverMarker,
        server_pool::{CHECK_AFTER_IDLE, MAX_LIFETIME, responds},
    },
    IdleGuard, acquire_error, query, query_error,
};

/// Maximum wait for the other task's write, several times its usual duration. A write that takes longer, because of a
/// slow server or a lock, delays no other task.
const MAX_TURN_WAIT: Duration = Duration::from_millis(10);

/// A connection to PostgreSQL that is opened at the first query. After an error or a canceled query it goes back to the
/// pool, which checks it: a connection to a demoted server is not kept, nor one that still runs a query.
#[derive(Debug)]
pub struct PinnedPgConnection {
    pool: PgPool,
    kept: Mutex<Option<(KeptConnection, IdleGuard)>>,
    idle: Arc<AtomicU32>,
    write_turn: WriteTurn,
    failover: FailoverMarker,
}

/// Lock of the task that writes.
pub type WriteTurn = Arc<Mutex<()>>;

#[derive(Debug)]
struct KeptConnection {
    connection: PoolConnection<Postgres>,
    pinned_at: Instant,
    used_at: Instant,
}

impl PinnedPgConnection {
    /// Pins a connection of the pool from the first query on. `idle` counts it while it runs no query. Tasks with the
    /// same `write_turn` write one after the other.
    pub fn new(pool: PgPool, idle: Arc<AtomicU32>, write_turn: WriteTurn, failover: FailoverMarker) -> Self {
        Self { pool, kept: Mutex::default(), idle, write_turn, failover }
    }

    /// Takes the kept connection if it is usable. One that was idle for a while is checked first, because a network may
    /// have dropped it and a call after a pause must not fail for that.
    async fn take_kept(&self) -> Option<KeptConnection> {
        let (mut kept, _) = self.kept.lock().await.take()?;
        if kept.pinned_at.elapsed() >= MAX_LIFETIME {
            return None;
        }
        if kept.used_at.elapsed() >= CHECK_AFTER_IDLE && !responds(&mut *kept.connection).await {
            self.failover.mark();
            kept.connection.close_on_drop();
            return None;
        }
        Some(kept)
    }

    async fn run<T>(&self, run: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>) -> Result<T, DbErr> {
        let mut kept = if let Some(kept) = self.take_kept().await {
            kept
        } else {
            let connection = self.pool.acquire().await.map_err(acquire_error)?;
            KeptConnection { connection, pinned_at: Instant::now(), used_at: Instant::now() }
        };
        let result = run(&mut kept.connection).await.map_err(query_error)?;
        kept.used_at = Instant::now();
        *self.kept.lock().await = Some((kept, IdleGuard::new(&self.idle)));
        Ok(result)
    }

    pub(super) async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let _turn = timeout(MAX_TURN_WAIT, self.write_turn.lock()).await;
        Ok(self.run(async |connection| query(statement).execute(connection).await).await?.into())
    }

    pub(super) async fn query_one(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let row = self.run(async |connection| query(statement).fetch_optional(connection).await).await?;
        Ok(row.map(Into::into))
    }

    pub(super) async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let rows = self.run(async |connection| query(statement).fetch_all(connection).await).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}
