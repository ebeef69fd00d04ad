//! Connections kept by the tasks that commit batches of calls. Each writing statement is its own transaction.

mod postgres;
mod sqlite;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, Values,
    sqlx::{self, AssertSqlSafe, Database, IntoArguments, query::Query},
};
use sea_query_sqlx::SqlxValues;

pub use postgres::{PinnedPgConnection, WriteTurn};
pub use sqlite::{PinnedSqliteWriter, WriterRequest};

/// The connection of a task that commits batches.
#[derive(Debug)]
pub enum PinnedConnection {
    /// A connection that only this task uses.
    Postgres(PinnedPgConnection),
    /// The connections that all tasks that commit batches share.
    Sqlite(Arc<PinnedSqlite>),
}

/// The connections of the tasks that commit batches on SQLite.
#[derive(Debug)]
pub struct PinnedSqlite {
    /// Read connections, one for each task, so that long reads of lists do not delay a batch.
    pub read: DatabaseConnection,
    /// The write connection.
    pub writer: PinnedSqliteWriter,
}

/// Counts a pinned connection as idle until the guard is dropped. The pool itself counts the connection as used.
#[derive(Debug)]
struct IdleGuard(Arc<AtomicU32>);

impl IdleGuard {
    fn new(idle: &Arc<AtomicU32>) -> Self {
        idle.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(idle))
    }
}

impl Drop for IdleGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn acquire_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// Converts a statement of sea-orm to a query of sqlx.
fn query<DB: Database>(statement: Statement) -> Query<'static, DB, SqlxValues>
where
    SqlxValues: IntoArguments<DB>,
{
    let values = statement.values.unwrap_or(Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

#[async_trait::async_trait]
impl ConnectionTrait for PinnedConnection {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Postgres(_) => DbBackend::Postgres,
            Self::Sqlite(_) => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self {
            Self::Postgres(postgres) => postgres.execute(statement).await,
            Self::Sqlite(sqlite) => sqlite.writer.execute(statement).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.execute_raw(Statement::from_string(self.get_database_backend(), sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self {
            Self::Postgres(postgres) => postgres.query_one(statement).await,
            Self::Sqlite(sqlite) => sqlite.read.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Postgres(postgres) => postgres.query_all(statement).await,
            Self::Sqlite(sqlite) => sqlite.read.query_all_raw(statement).await,
        }
    }
}
