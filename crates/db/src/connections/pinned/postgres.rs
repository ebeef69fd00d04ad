//! A connection to PostgreSQL that one task keeps.
//!
//! The pool checks every returned connection with a round trip, and hands out its connections in turn. Each connection
//! is a server process with its own caches. A task that queries continuously therefore keeps one connection.
//!
//! These tasks write one after the other. Concurrent inserts into the same tables contend for pages and for the
//! write-ahead log, and each task waits for the other in the middle of its write. Reads are not delayed.

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

/// Maximum wait for the other task's write, several times the usual duration of a write. A longer write, caused by a
/// slow server or a lock, does not delay the other task further.
const MAX_TURN_WAIT: Duration = Duration::from_millis(10);

/// A connection to PostgreSQL that is opened at the first query. After an error or a canceled query, the connection
/// goes back to the pool, which checks it. The task thus drops a connection to a demoted server and a connection that
/// still runs a query.
#[derive(Debug)]
pub struct PinnedPgConnection {
    pool: PgPool,
    kept: Mutex<Option<(KeptConnection, IdleGuard)>>,
    idle: Arc<AtomicU32>,
    write_turn: WriteTurn,
    failover: FailoverMarker,
}

/// Lock that the writing task holds.
pub type WriteTurn = Arc<Mutex<()>>;

#[derive(Debug)]
struct KeptConnection {
    connection: PoolConnection<Postgres>,
    pinned_at: Instant,
    used_at: Instant,
}

impl PinnedPgConnection {
    /// Pins a connection of the pool from the first query on. `idle` counts the connection while it runs no query.
    /// Tasks with the same `write_turn` write one after the other.
    pub fn new(pool: PgPool, idle: Arc<AtomicU32>, write_turn: WriteTurn, failover: FailoverMarker) -> Self {
        Self { pool, kept: Mutex::default(), idle, write_turn, failover }
    }

    /// Takes the kept connection if it is usable. A connection that was idle for a while is checked first: a network
    /// may have dropped it, and a call after a pause must not fail because of that.
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
