//! Opening the database.

use std::time::Duration;

use appferry_migrations::{Migrator, MigratorTrait as _};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};

use super::{Error, Result, State};

/// How the state is kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The database, `sqlite://PATH`.
    pub url: String,
    /// Connections for reading.
    pub readers: u32,
    /// How long to wait for a connection, or for another process to let go of the database.
    pub patience: Duration,
    /// Calls that may wait to be committed; one more is refused.
    pub accept_queue: usize,
    /// Calls that are committed together at most.
    pub accept_batch: usize,
    /// How often watchers are fed when nothing in this process says that something has changed.
    pub poll: Duration,
}

impl Settings {
    /// The settings for a database, with defaults for the rest.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self {
            url,
            readers: 4,
            patience: Duration::from_secs(2),
            accept_queue: 4_096,
            accept_batch: 512,
            poll: Duration::from_millis(500),
        }
    }
}

/// Opens the connection that writes and those that read. The schema must be the current one.
pub(super) async fn open(settings: &Settings) -> Result<(DatabaseConnection, DatabaseConnection)> {
    let write = connect(settings, 1).await?;
    let pending = Migrator::get_pending_migrations(&write).await.map_err(Error::schema)?;
    if !pending.is_empty() {
        return Err(Error::SchemaOld(pending.len()));
    }
    let read = connect(settings, settings.readers).await?;
    Ok((write, read))
}

/// Creates the database if there is none and brings its schema up to date. Returns how many steps it took.
pub async fn migrate(settings: &Settings) -> Result<usize> {
    let db = connect(settings, 1).await?;
    let pending = Migrator::get_pending_migrations(&db).await.map_err(Error::schema)?;
    Migrator::up(&db, None).await.map_err(Error::schema)?;
    db.close().await?;
    Ok(pending.len())
}

async fn connect(settings: &Settings, connections: u32) -> Result<DatabaseConnection> {
    if !settings.url.starts_with("sqlite:") {
        return Err(Error::UnknownDatabase(settings.url.split(':').next().unwrap_or_default().to_owned()));
    }
    let patience = settings.patience;
    let mut options = ConnectOptions::new(&settings.url);
    options
        .max_connections(connections)
        .acquire_timeout(patience)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .create_if_missing(true)
                .busy_timeout(patience)
                .foreign_keys(false)
                .pragma("journal_mode", "WAL")
                // A commit is on the disk before it is acknowledged, and not only handed to the operating system.
                .pragma("synchronous", "FULL")
                // A group of calls writes many pages; to fold them back after each would write everything twice at once.
                .pragma("wal_autocheckpoint", "16384")
                .pragma("cache_size", "-16384")
                .pragma("temp_store", "MEMORY")
        });
    Ok(Database::connect(options).await?)
}

impl State {
    /// Begins a transaction that writes. It takes the write lock at once: a transaction that began by reading could be
    /// refused it later.
    pub(super) async fn write(&self) -> Result<DatabaseTransaction> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        Ok(self.0.write.begin_with_options(options).await?)
    }
}

/// Runs a statement with values.
pub(super) async fn execute(
    db: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = sea_orm::Value>,
) -> std::result::Result<(), DbErr> {
    let statement = sea_orm::Statement::from_sql_and_values(db.get_database_backend(), sql, values);
    db.execute_raw(statement).await.map(drop)
}
