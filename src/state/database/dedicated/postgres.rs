//! A connection to PostgreSQL that one task keeps.
//!
//! The pool looks at a connection whenever it is given back, which is a way to the server and back, and hands them out in turns. But each
//! is a process of the server, with caches of its own. Whoever asks all the time keeps one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, Values,
    sqlx::{self, AssertSqlSafe, Executor as _, PgConnection, PgPool, Postgres, pool::PoolConnection},
};
use sea_query_sqlx::SqlxValues;
use tokio::{sync::Mutex, time::Instant};

use super::server::LIFETIME;

/// A connection to PostgreSQL, made when it is needed. Whatever fails, or is given up, has the pool look at it and hand out one that
/// is good: the one to a server that takes no writes any more is not kept, nor one that somebody still asks something.
pub struct Dedicated {
    pool: PgPool,
    kept: Mutex<Option<(Kept, Unused)>>,
    unused: Arc<AtomicU32>,
}

struct Kept {
    connection: PoolConnection<Postgres>,
    since: Instant,
}

/// Counts a connection that is kept and asked nothing, for as long as it lives: the pool takes it for one that is in use.
struct Unused(Arc<AtomicU32>);

impl Unused {
    fn new(unused: &Arc<AtomicU32>) -> Self {
        unused.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(unused))
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Dedicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dedicated").finish_non_exhaustive()
    }
}

impl Dedicated {
    /// One of the pool's connections, from the first question on. While it is asked nothing, `unused` counts it.
    pub fn of(pool: PgPool, unused: Arc<AtomicU32>) -> Self {
        Self { pool, kept: Mutex::default(), unused }
    }

    async fn ask<T>(&self, ask: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>) -> Result<T, DbErr> {
        let kept = self.kept.lock().await.take().map(|(kept, _)| kept);
        let mut kept = match kept.filter(|kept| kept.since.elapsed() < LIFETIME) {
            Some(kept) => kept,
            None => {
                let connection = self.pool.acquire().await.map_err(|e| DbErr::Conn(RuntimeErr::SqlxError(e.into())))?;
                Kept { connection, since: Instant::now() }
            }
        };
        let answer = ask(&mut kept.connection).await.map_err(|e| DbErr::Query(RuntimeErr::SqlxError(e.into())))?;
        *self.kept.lock().await = Some((kept, Unused::new(&self.unused)));
        Ok(answer)
    }
}

fn query(statement: Statement) -> sqlx::query::Query<'static, Postgres, SqlxValues> {
    let values = statement.values.unwrap_or(Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

#[async_trait::async_trait]
impl ConnectionTrait for Dedicated {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        Ok(self.ask(async |connection| query(statement).execute(connection).await).await?.into())
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        Ok(self.ask(async |connection| connection.execute(AssertSqlSafe(sql.to_owned())).await).await?.into())
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let row = self.ask(async |connection| query(statement).fetch_optional(connection).await).await?;
        Ok(row.map(Into::into))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let rows = self.ask(async |connection| query(statement).fetch_all(connection).await).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}
