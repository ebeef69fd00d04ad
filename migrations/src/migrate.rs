//! Applies the steps, whatever interrupts them.
//!
//! Everything happens on one connection and within one transaction that holds the lock of migrations: on SQLite and PostgreSQL, all
//! steps and the rows that record them are committed together or not at all. On MySQL and MariaDB, where a change of the schema
//! commits what came before it, a step that was interrupted is applied again (see [`crate::idempotent`]).

use std::time::Duration;

use sea_orm_migration::{
    MigratorTrait as _,
    sea_orm::{
        ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, RuntimeErr,
        SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _, sqlx,
    },
};

use crate::Migrator;

/// The lock under which a schema is changed: a number of its own for PostgreSQL, a name for MySQL. SQLite has one lock for all
/// that write.
const LOCK: i64 = 0x6170_7066_6572_7279;

/// Why a schema could not be brought up to date.
#[derive(Debug)]
pub enum Error {
    /// Another process has held the lock for the whole time.
    Locked,
    /// The database failed, or has steps that this version does not know.
    Database(DbErr),
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// Creates the schema if there is none and brings it up to date. While another process does so, waits for it, up to `wait`; on
/// SQLite, for as long as the connection's busy timeout says. Returns how many steps were applied.
pub async fn migrate(db: &DatabaseConnection, wait: Duration) -> Result<usize, Error> {
    // On SQLite, the lock is taken here.
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = db.begin_with_options(options).await.map_err(refused)?;
    lock(&transaction, wait).await?;
    let steps = Migrator::get_pending_migrations_read_only(&transaction).await?.len();
    if steps > 0 {
        Migrator::up(&transaction, None).await?;
    }
    transaction.commit().await?;
    Ok(steps)
}

/// Waits for the lock, which goes with the transaction (PostgreSQL) or the connection (MySQL).
async fn lock(transaction: &DatabaseTransaction, wait: Duration) -> Result<(), Error> {
    let backend = transaction.get_database_backend();
    let seconds = wait.as_secs();
    match backend {
        DbBackend::Postgres => {
            let limit = format!("SET LOCAL lock_timeout = '{seconds}s'");
            transaction.execute_unprepared(&limit).await?;
            let ask = format!("SELECT pg_advisory_xact_lock({LOCK})");
            transaction.execute_unprepared(&ask).await.map_err(refused)?;
        }
        DbBackend::MySql => {
            let ask = format!("SELECT GET_LOCK('appferry_migrate', {seconds}) AS got");
            let row = transaction.query_one_raw(Statement::from_string(backend, ask)).await?;
            let got = row.and_then(|row| row.try_get::<Option<i64>>("", "got").ok().flatten());
            if got != Some(1) {
                return Err(Error::Locked);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Tells a lock that was not given in time from other failures.
fn refused(error: DbErr) -> Error {
    if is_locked(&error) { Error::Locked } else { Error::Database(error) }
}

/// Whether the database refused because another connection holds a lock: `lock_not_available` on PostgreSQL, `SQLITE_BUSY` and
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
