//! The schema: brought up to date by one process at a time, and checked by all.

use std::time::Duration;

use appferry_migrations::{Migrator, MigratorTrait as _};
use sea_orm::DatabaseConnection;
use tokio::time::Instant;

use super::{super::Error, Demoted, Result, Settings, connect, scheme};

/// How long a migration waits for another one to end.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// How long to wait before another attempt to open a database that others are just creating.
const OPEN_AGAIN: Duration = Duration::from_millis(50);

/// Fails unless the schema is the one that this version knows.
pub async fn check(db: &DatabaseConnection) -> Result<()> {
    match Migrator::get_pending_migrations_read_only(db).await.map_err(Error::schema)?.len() {
        0 => Ok(()),
        steps => Err(Error::SchemaOld(steps)),
    }
}

/// Creates the database's schema if there is none, and brings it up to date. Waits for another process that does so. Returns how many
/// steps were applied. A migration that was interrupted, at whatever moment, is completed by the next one.
pub async fn migrate(settings: &Settings) -> Result<usize> {
    // A step may take longer than anything else that is asked of the database.
    let mut settings = Settings { timeout: Duration::from_secs(24 * 3600), ..settings.clone() };
    if scheme(&settings.url) == "sqlite" {
        // It is what a file's lock is waited for.
        settings.patience = LOCK_WAIT;
    }
    let db = open(&settings).await?;
    let steps = appferry_migrations::migrate(&db, LOCK_WAIT).await.map_err(|error| match error {
        appferry_migrations::Error::Locked => Error::SchemaLocked(LOCK_WAIT),
        appferry_migrations::Error::Database(error) => Error::schema(error),
    });
    db.close().await?;
    steps
}

/// Opens a single connection. SQLite refuses at once, and does not wait, where several turn to its write-ahead log together: what
/// another process is doing then takes a moment.
async fn open(settings: &Settings) -> Result<DatabaseConnection> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match connect(settings, 1, &Demoted::default()).await {
            Err(Error::Unavailable(cause)) if appferry_migrations::is_locked(&cause) && Instant::now() < deadline => {
                tokio::time::sleep(OPEN_AGAIN).await;
            }
            opened => return opened,
        }
    }
}
