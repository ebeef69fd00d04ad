//! A connection to PostgreSQL that one task keeps.
//!
//! The pool looks at a connection whenever it is given back, which is a way to the server and back, and hands them out in turns. But each
//! is a process of the server, with caches of its own. Whoever asks all the time keeps one.
//!
//! Such tasks write one after the other: two that insert into the same tables at the same time take turns at their pages and at the log,
//! and each waits for the other in its midst. What one reads meanwhile is not held up.

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
        Demoted,
        server::{IDLE, LIFETIME, answers},
    },
    Unused, not_acquired, not_carried_out, query,
};

/// How long a task waits at most until the other has written: for several times what that takes as a rule. Whoever writes for longer, as
/// its server is slow or as somebody holds a lock, holds up nobody.
const TURN: Duration = Duration::from_millis(10);

/// A connection to PostgreSQL, made when it is needed. Whatever fails, or is given up, has the pool look at it and hand out one that
/// is good: the one to a server that takes no writes any more is not kept, nor one that somebody still asks something.
#[derive(Debug)]
pub struct Own {
    pool: PgPool,
    kept: Mutex<Option<(Kept, Unused)>>,
    unused: Arc<AtomicU32>,
    turn: Turn,
    demoted: Demoted,
}

/// Held by the task that writes.
pub type Turn = Arc<Mutex<()>>;

#[derive(Debug)]
struct Kept {
    connection: PoolConnection<Postgres>,
    since: Instant,
    used: Instant,
}

impl Own {
    /// One of the pool's connections, from the first question on. While it is asked nothing, `unused` counts it. Tasks with the same
    /// `turn` write one after the other.
    pub fn of(pool: PgPool, unused: Arc<AtomicU32>, turn: Turn, demoted: Demoted) -> Self {
        Self { pool, kept: Mutex::default(), unused, turn, demoted }
    }

    /// The connection that was kept, if it is still good. One that was not used for a while is asked: the network may have cut it, and
    /// a call that comes after a pause must not pay for that.
    async fn kept(&self) -> Option<Kept> {
        let (mut kept, _) = self.kept.lock().await.take()?;
        if kept.since.elapsed() >= LIFETIME {
            return None;
        }
        if kept.used.elapsed() >= IDLE && !answers(&mut *kept.connection).await {
            self.demoted.note();
            kept.connection.close_on_drop();
            return None;
        }
        Some(kept)
    }

    async fn ask<T>(&self, ask: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>) -> Result<T, DbErr> {
        let mut kept = if let Some(kept) = self.kept().await {
            kept
        } else {
            let connection = self.pool.acquire().await.map_err(not_acquired)?;
            Kept { connection, since: Instant::now(), used: Instant::now() }
        };
        let answer = ask(&mut kept.connection).await.map_err(not_carried_out)?;
        kept.used = Instant::now();
        *self.kept.lock().await = Some((kept, Unused::new(&self.unused)));
        Ok(answer)
    }

    pub(super) async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let _turn = timeout(TURN, self.turn.lock()).await;
        Ok(self.ask(async |connection| query(statement).execute(connection).await).await?.into())
    }

    pub(super) async fn query_one(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let row = self.ask(async |connection| query(statement).fetch_optional(connection).await).await?;
        Ok(row.map(Into::into))
    }

    pub(super) async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let rows = self.ask(async |connection| query(statement).fetch_all(connection).await).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}
