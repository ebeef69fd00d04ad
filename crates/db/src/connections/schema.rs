//! Migrates the schema in one process at a time, and checks its version.

use std::time::Duration;

use appferry_migrations::{Migrator, MigratorTrait as _};
use sea_orm::DatabaseConnection;
use tokio::time::Instant;

use super::{super::Error, Result, Settings, connect, failover::FailoverMarker};

/// Maximum wait for another process's migration.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Wait between attempts to open a database that other processes are creating.
const OPEN_RETRY_WAIT: Duration = Duration::from_millis(50);

/// Returns an error unless exactly the steps of this version have been applied to the schema.
pub async fn check(connection: &DatabaseConnection) -> Result<()> {
    match Migrator::get_pending_migrations_read_only(connection).await.map_err(Error::schema)?.len() {
        0 => Ok(()),
        steps => Err(Error::SchemaOld(steps)),
    }
}

/// Creates or upgrades the schema and returns the number of applied steps. Waits for another process that is migrating
/// the schema. The next migration completes one that was interrupted at any point.
pub async fn migrate(settings: &Settings) -> Result<usize> {
    // A step may take longer than any other query.
    let mut settings = Settings { timeout: Duration::from_secs(24 * 3600), ..settings.clone() };
    if settings.is_sqlite() {
        // On SQLite, this is the busy timeout.
        settings.acquire_timeout = LOCK_WAIT;
    }
    let connection = open(&settings).await?;
    let steps = appferry_migrations::migrate(&connection, LOCK_WAIT).await.map_err(|error| match error {
        appferry_migrations::Error::Locked => Error::SchemaLocked(LOCK_WAIT),
        appferry_migrations::Error::Database(error) => Error::schema(error),
    });
    connection.close().await?;
    steps
}

/// Opens a single connection. Retries on SQLite: while another process switches the database to the write-ahead log,
/// which takes a moment, SQLite ignores the busy timeout and fails at once.
async fn open(settings: &Settings) -> Result<DatabaseConnection> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match connect(settings, 1, &FailoverMarker::default()).await {
            Err(Error::Unavailable(cause)) if appferry_migrations::is_locked(&cause) && Instant::now() < deadline => {
                tokio::time::sleep(OPEN_RETRY_WAIT).await;
            }
            opened => return opened,
        }
    }
}
