//! SQLite's write connection, as used by the tasks that commit batches.
//!
//! A query to SQLite makes a round trip to the thread of its connection. The task that receives the result then queues
//! behind every other task that is ready to run. Under load, that takes longer than the query. A batch therefore makes
//! one round trip for its whole transaction. The connection is kept for the next batch while no other task asks for it:
//! returning it to the pool would add a round trip for the pool's check.

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

use super::{IdleGuard, acquire_error, query, query_error};

/// The write connection: in the pool, used by a batch, or kept for the next batch.
#[derive(Debug)]
pub struct PinnedSqliteWriter {
    pool: SqlitePool,
    kept: Mutex<Option<(PoolConnection<Sqlite>, IdleGuard)>>,
    /// Number of [`WriterRequest`]s.
    requests: AtomicUsize,
    idle: Arc<AtomicU32>,
}

/// A request of another writer for the connection. While the request lives, batches return the connection to the pool.
#[derive(Debug)]
pub struct WriterRequest<'a>(&'a AtomicUsize);

impl Drop for WriterRequest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PinnedSqliteWriter {
    /// Pins the only connection of a pool. `idle` counts the connection while it is kept.
    pub fn new(pool: SqlitePool, idle: Arc<AtomicU32>) -> Self {
        Self { pool, kept: Mutex::default(), requests: AtomicUsize::new(0), idle }
    }

    /// Returns the connection to the pool, at once or after the running transaction.
    pub async fn request(&self) -> WriterRequest<'_> {
        self.requests.fetch_add(1, Ordering::AcqRel);
        let request = WriterRequest(&self.requests);
        drop(self.kept.lock().await.take());
        request
    }

    /// Executes one or more statements as one transaction.
    pub(super) async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut kept = self.kept.lock().await;
        let connection = match kept.take() {
            Some((connection, _)) => connection,
            None => self.pool.acquire().await.map_err(acquire_error)?,
        };
        // Closing the connection ends a transaction that was canceled or cannot be rolled back.
        let mut connection = scopeguard::guard(connection, |mut connection| connection.close_on_drop());
        // Takes the write lock at once: a transaction that begins with a read can fail to upgrade its lock later.
        let sql = format!("BEGIN IMMEDIATE; {}; COMMIT", statement.sql);
        let result = execute_counted(&mut connection, Statement { sql, ..statement }).await;
        if result.is_ok() || connection.execute("ROLLBACK").await.is_ok() {
            let connection = ScopeGuard::into_inner(connection);
            if self.requests.load(Ordering::Acquire) == 0 {
                *kept = Some((connection, IdleGuard::new(&self.idle)));
            }
        }
        Ok(result.map_err(query_error)?.into())
    }
}

/// Executes a transaction and sums the numbers of rows that its statements changed. Ignores the results of `BEGIN` and
/// `COMMIT`, for which SQLite repeats the count of the preceding statement.
async fn execute_counted(
    connection: &mut SqliteConnection,
    statement: Statement,
) -> Result<SqliteQueryResult, sqlx::Error> {
    let results: Vec<SqliteQueryResult> =
        connection.fetch_many(query(statement)).try_filter_map(|step| ready(Ok(step.left()))).try_collect().await?;
    let mut changed = SqliteQueryResult::default();
    let between = results.len().saturating_sub(2);
    changed.extend(results.into_iter().skip(1).take(between));
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

    use super::PinnedSqliteWriter;

    /// A statement that takes longer than the tests wait.
    const SLOW: &str = "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000000) \
                        SELECT max(i) FROM n";

    async fn writer(directory: &tempfile::TempDir) -> (SqlitePool, Arc<PinnedSqliteWriter>) {
        let url = format!("sqlite://{}/t.db?mode=rwc", directory.path().display());
        let options = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(60));
        let pool = options.connect(&url).await.expect("a pool");
        pool.execute("CREATE TABLE t (i INTEGER PRIMARY KEY)").await.expect("a table");
        (pool.clone(), Arc::new(PinnedSqliteWriter::new(pool, Arc::default())))
    }

    async fn execute(writer: &PinnedSqliteWriter, sql: &str) -> Result<u64, DbErr> {
        Ok(writer.execute(Statement::from_string(DbBackend::Sqlite, sql)).await?.rows_affected())
    }

    /// Reads the rows through the pool, as another writer does.
    async fn rows(writer: &PinnedSqliteWriter, pool: &SqlitePool) -> Vec<i64> {
        let request = writer.request().await;
        let rows = sqlx::query_scalar(AssertSqlSafe("SELECT i FROM t ORDER BY i")).fetch_all(pool).await;
        drop(request);
        rows.expect("rows")
    }

    #[tokio::test]
    async fn statements_are_executed_together_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let (pool, writer) = writer(&directory).await;
        execute(&writer, "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)").await.expect("new rows");
        execute(&writer, "INSERT INTO t VALUES (3); INSERT INTO t VALUES (2)").await.expect_err("a duplicate");
        assert_eq!(rows(&writer, &pool).await, [1, 2]);
        execute(&writer, "INSERT INTO t VALUES (4)").await.expect("a usable connection");
        assert_eq!(rows(&writer, &pool).await, [1, 2, 4]);
    }

    #[tokio::test]
    async fn rows_changed_by_an_earlier_transaction_are_not_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, writer) = writer(&directory).await;
        let both = "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2), (3)";
        assert_eq!(execute(&writer, both).await.expect("new rows"), 3);
        let none = "INSERT INTO t SELECT 4 WHERE 0; INSERT INTO t SELECT 5 WHERE 0";
        assert_eq!(execute(&writer, none).await.expect("no rows"), 0);
    }

    #[tokio::test]
    async fn a_canceled_transaction_is_rolled_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let (pool, writer) = writer(&directory).await;
        execute(&writer, "INSERT INTO t VALUES (1)").await.expect("a new row");
        let both = format!("INSERT INTO t VALUES (2); {SLOW}");
        timeout(Duration::from_millis(50), execute(&writer, &both)).await.expect_err("a timeout");
        execute(&writer, "INSERT INTO t VALUES (3)").await.expect("a usable connection");
        assert_eq!(rows(&writer, &pool).await, [1, 3]);
    }

    /// Another writer gets the connection even though batches follow each other without a pause.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn another_writer_gets_the_connection_between_batches() {
        let directory = tempfile::tempdir().expect("a directory");
        let (pool, writer) = writer(&directory).await;
        let batch_writer = Arc::clone(&writer);
        let batches = tokio::spawn(async move {
            for i in 1_000.. {
                execute(&batch_writer, &format!("INSERT INTO t VALUES ({i})")).await.expect("a new row");
            }
        });
        for turn in 1..=20 {
            let request = writer.request().await;
            let insert = format!("INSERT INTO t VALUES ({turn})");
            pool.execute(AssertSqlSafe(insert)).await.expect("the connection");
            drop(request);
        }
        batches.abort();
        assert!(batches.await.expect_err("the batches run until they are aborted").is_cancelled());
        let rows = rows(&writer, &pool).await;
        assert!(rows.starts_with(&(1..=20).collect::<Vec<_>>()), "every turn has written: {rows:?}");
        assert!(rows.len() > 20, "batches have written in between");
    }
}
