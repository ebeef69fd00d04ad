//! Applies the pending steps. A migration may be interrupted at any point.
//!
//! All steps run on one connection and in one transaction that holds the migration lock: SQLite and PostgreSQL commit
//! all steps and the rows that record them together or not at all. On MySQL and MariaDB, where a schema change commits
//! the transaction, an interrupted step is applied again (see [`crate::idempotent`]).

use std::time::Duration;

use sea_orm_migration::{
    MigratorTrait as _,
    sea_orm::{
        ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, RuntimeErr,
        SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _, sqlx,
    },
};

use crate::Migrator;

/// Key of PostgreSQL's advisory lock for migrations. MySQL and MariaDB use a named lock, SQLite its write lock.
const LOCK_KEY: i64 = 0x6170_7066_6572_7279;

/// Errors of a migration.
#[derive(Debug)]
pub enum Error {
    /// Another process held the lock for the whole wait.
    Locked,
    /// The database failed, or has steps that this version does not know.
    Database(DbErr),
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// Creates or upgrades the schema and returns the number of applied steps. Waits for another process's migration, up to
/// `wait`; on SQLite, up to the connection's busy timeout.
pub async fn migrate(db: &DatabaseConnection, wait: Duration) -> Result<usize, Error> {
    // On SQLite, this takes the lock.
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = db.begin_with_options(options).await.map_err(lock_error)?;
    lock(&transaction, wait).await?;
    let steps = Migrator::get_pending_migrations_read_only(&transaction).await?.len();
    if steps > 0 {
        Migrator::up(&transaction, None).await?;
    }
    transaction.commit().await?;
    Ok(steps)
}

/// Waits for the lock, which is released with the transaction (PostgreSQL) or the connection (MySQL).
async fn lock(transaction: &DatabaseTransaction, wait: Duration) -> Result<(), Error> {
    let backend = transaction.get_database_backend();
    let seconds = wait.as_secs();
    match backend {
        DbBackend::Postgres => {
            let limit = format!("SET LOCAL lock_timeout = '{seconds}s'");
            transaction.execute_unprepared(&limit).await?;
            let acquire = format!("SELECT pg_advisory_xact_lock({LOCK_KEY})");
            transaction.execute_unprepared(&acquire).await.map_err(lock_error)?;
        }
        DbBackend::MySql => {
            let acquire = format!("SELECT GET_LOCK('appferry_migrate', {seconds}) AS acquired");
            let row = transaction.query_one_raw(Statement::from_string(backend, acquire)).await?;
            let acquired = row.and_then(|row| row.try_get::<Option<i64>>("", "acquired").ok().flatten());
            if acquired != Some(1) {
                return Err(Error::Locked);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Returns [`Error::Locked`] for a lock that was not acquired in time, and [`Error::Database`] for other errors.
fn lock_error(error: DbErr) -> Error {
    if is_locked(&error) { Error::Locked } else { Error::Database(error) }
}

/// Whether an error means that another connection holds a lock: `lock_not_available` on PostgreSQL, `SQLITE_BUSY` and
/// `SQLITE_LOCKED` with their extended codes on SQLite.
#[must_use]
pub fn is_locked(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(cause))
    | DbErr::Query(RuntimeErr::SqlxError(cause))
    | DbErr::Conn(RuntimeErr::SqlxError(cause))) = error
    else {
        return false;
    };
    let sqlx::Error::Database(cause) = &**cause else { return false };
    let code = cause.code().unwrap_or_default();
    code == "55P03" || code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6))
}
