//! What a task asks that commits one group of calls after the other. Each statement that writes is a transaction by itself.

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

pub use postgres::{Own, Turn};
pub use sqlite::{Wanted, Writer};

/// See the module.
#[derive(Debug)]
pub enum Dedicated {
    /// On PostgreSQL, a connection of its own.
    Postgres(Own),
    /// On SQLite, what all such tasks share.
    Sqlite(Arc<Sqlite>),
}

/// What groups of calls have on SQLite.
#[derive(Debug)]
pub struct Sqlite {
    /// Connections that read beside the writer, one for each task: nobody who reads a list makes calls wait.
    pub read: DatabaseConnection,
    /// The only one that writes.
    pub writer: Writer,
}

/// Counts a connection that is kept and asked nothing, for as long as it lives: the pool takes it for one that is in use.
#[derive(Debug)]
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

fn not_acquired(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

fn not_carried_out(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// A statement of sea-orm's, for sqlx.
fn query<DB: Database>(statement: Statement) -> Query<'static, DB, SqlxValues>
where
    SqlxValues: IntoArguments<DB>,
{
    let values = statement.values.unwrap_or(Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

#[async_trait::async_trait]
impl ConnectionTrait for Dedicated {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Postgres(_) => DbBackend::Postgres,
            Self::Sqlite(_) => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self {
            Self::Postgres(own) => own.execute(statement).await,
            Self::Sqlite(sqlite) => sqlite.writer.execute(statement).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.execute_raw(Statement::from_string(self.get_database_backend(), sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self {
            Self::Postgres(own) => own.query_one(statement).await,
            Self::Sqlite(sqlite) => sqlite.read.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Postgres(own) => own.query_all(statement).await,
            Self::Sqlite(sqlite) => sqlite.read.query_all_raw(statement).await,
        }
    }
}
