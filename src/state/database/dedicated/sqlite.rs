//! SQLite's connection that writes, as groups of calls use it.
//!
//! What is asked of SQLite goes to the thread of a connection and back, and whoever is answered queues behind all that is ready to run:
//! while many call, that takes longer than what was asked. So a group's transaction goes there and back once; and its connection is
//! kept for the next one, as long as nobody else wants to write: the pool would ask it whether it is good, which is once more.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use futures_util::{TryStreamExt as _, future::ready};
use scopeguard::ScopeGuard;
use sea_orm::{
    DbErr, ExecResult, Statement,
    sqlx::{
        self, Executor as _, Sqlite, SqliteConnection, SqlitePool, pool::PoolConnection, sqlite::SqliteQueryResult,
    },
};
use tokio::sync::Mutex;

use super::{Unused, not_acquired, not_carried_out, query};

/// The connection that writes: in the pool, with a group, or kept for the next one.
#[derive(Debug)]
pub struct Writer {
    pool: SqlitePool,
    kept: Mutex<Option<(PoolConnection<Sqlite>, Unused)>>,
    /// How many others want to write.
    wanted: AtomicUsize,
    unused: Arc<AtomicU32>,
}

/// Somebody else wants to write: while this lives, no group keeps the connection.
#[derive(Debug)]
pub struct Wanted<'a>(&'a AtomicUsize);

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Writer {
    /// The only connection of a pool. While it is kept, `unused` counts it.
    pub fn of(pool: SqlitePool, unused: Arc<AtomicU32>) -> Self {
        Self { pool, kept: Mutex::default(), wanted: AtomicUsize::new(0), unused }
    }

    /// Has the connection go back to the pool, at once or after the transaction that is underway.
    pub async fn want(&self) -> Wanted<'_> {
        self.wanted.fetch_add(1, Ordering::AcqRel);
        let wanted = Wanted(&self.wanted);
        drop(self.kept.lock().await.take());
        wanted
    }

    /// Carries a statement out, or several, as one transaction.
    pub(super) async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut kept = self.kept.lock().await;
        let connection = match kept.take() {
            Some((connection, _)) => connection,
            None => self.pool.acquire().await.map_err(not_acquired)?,
        };
        // Where the transaction is given up, or can't be undone, it goes with the connection.
        let mut connection = scopeguard::guard(connection, |mut connection| connection.close_on_drop());
        // It takes the lock to write at once: who began by reading could be refused it later.
        let sql = format!("BEGIN IMMEDIATE; {}; COMMIT", statement.sql);
        let answer = changes(&mut connection, Statement { sql, ..statement }).await;
        if answer.is_ok() || connection.execute("ROLLBACK").await.is_ok() {
            let connection = ScopeGuard::into_inner(connection);
            if self.wanted.load(Ordering::Acquire) == 0 {
                *kept = Some((connection, Unused::new(&self.unused)));
            }
        }
        Ok(answer.map_err(not_carried_out)?.into())
    }
}

/// Carries out a transaction, and counts what the statements between its beginning and its end have changed: for those two, SQLite
/// repeats what the statement before has changed.
async fn changes(connection: &mut SqliteConnection, statement: Statement) -> Result<SqliteQueryResult, sqlx::Error> {
    let done: Vec<SqliteQueryResult> =
        connection.fetch_many(query(statement)).try_filter_map(|step| ready(Ok(step.left()))).try_collect().await?;
    let mut changed = SqliteQueryResult::default();
    let between = done.len().saturating_sub(2);
    changed.extend(done.into_iter().skip(1).take(between));
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use sea_orm::{
        DbBackend, DbErr, Statement,
        sqlx::{self, AssertSqlSafe, Executor as _, SqlitePool, sqlite::SqlitePoolOptions},
    };
    use tokio::time::timeout;

    use super::Writer;

    /// Takes longer than anybody waits.
    const SLOW: &str = "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000000) \
                        SELECT max(i) FROM n";

    async fn writer(directory: &tempfile::TempDir) -> (SqlitePool, Arc<Writer>) {
        let url = format!("sqlite://{}/t.db?mode=rwc", directory.path().display());
        let options = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(60));
        let pool = options.connect(&url).await.expect("it opens");
        pool.execute("CREATE TABLE t (i INTEGER PRIMARY KEY)").await.expect("a table");
        (pool.clone(), Arc::new(Writer::of(pool, Arc::default())))
    }

    async fn execute(writer: &Writer, sql: &str) -> Result<u64, DbErr> {
        Ok(writer.execute(Statement::from_string(DbBackend::Sqlite, sql)).await?.rows_affected())
    }

    /// What there is, as somebody else sees it who waits for the connection.
    async fn found(writer: &Writer, pool: &SqlitePool) -> Vec<i64> {
        let wanted = writer.want().await;
        let rows = sqlx::query_scalar(AssertSqlSafe("SELECT i FROM t ORDER BY i")).fetch_all(pool).await;
        drop(wanted);
        rows.expect("it answers")
    }

    #[tokio::test]
    async fn statements_are_carried_out_together_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let (pool, writer) = writer(&directory).await;
        execute(&writer, "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)").await.expect("both are new");
        execute(&writer, "INSERT INTO t VALUES (3); INSERT INTO t VALUES (2)").await.expect_err("one is there");
        assert_eq!(found(&writer, &pool).await, [1, 2]);
        execute(&writer, "INSERT INTO t VALUES (4)").await.expect("it goes on");
        assert_eq!(found(&writer, &pool).await, [1, 2, 4]);
    }

    #[tokio::test]
    async fn what_was_changed_before_does_not_count() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, writer) = writer(&directory).await;
        let both = "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2), (3)";
        assert_eq!(execute(&writer, both).await.expect("they are new"), 3);
        let none = "INSERT INTO t SELECT 4 WHERE 0; INSERT INTO t SELECT 5 WHERE 0";
        assert_eq!(execute(&writer, none).await.expect("it is nothing"), 0);
    }

    #[tokio::test]
    async fn what_is_given_up_is_undone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (pool, writer) = writer(&directory).await;
        execute(&writer, "INSERT INTO t VALUES (1)").await.expect("it is new");
        let both = format!("INSERT INTO t VALUES (2); {SLOW}");
        timeout(Duration::from_millis(50), execute(&writer, &both)).await.expect_err("it takes too long");
        execute(&writer, "INSERT INTO t VALUES (3)").await.expect("it goes on");
        assert_eq!(found(&writer, &pool).await, [1, 3]);
    }

    /// A group follows the other without a pause, and somebody else writes all the same.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_else_wants_to_write_gets_a_turn() {
        let directory = tempfile::tempdir().expect("a directory");
        let (pool, writer) = writer(&directory).await;
        let own = Arc::clone(&writer);
        let groups = tokio::spawn(async move {
            for i in 1_000.. {
                execute(&own, &format!("INSERT INTO t VALUES ({i})")).await.expect("it is new");
            }
        });
        for turn in 1..=20 {
            let wanted = writer.want().await;
            let insert = format!("INSERT INTO t VALUES ({turn})");
            pool.execute(AssertSqlSafe(insert)).await.expect("the connection comes in time");
            drop(wanted);
        }
        groups.abort();
        assert!(groups.await.expect_err("it runs until it is aborted").is_cancelled());
        let rows = found(&writer, &pool).await;
        assert!(rows.starts_with(&Vec::from_iter(1..=20)), "every turn has written: {rows:?}");
        assert!(rows.len() > 20, "the groups have written in between");
    }
}
