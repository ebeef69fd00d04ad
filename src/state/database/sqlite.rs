//! The embedded database.

use sea_orm::{ConnectOptions, Database, DatabaseConnection};

use super::{super::Result, Settings};

pub async fn connect(settings: &Settings, connections: u32) -> Result<DatabaseConnection> {
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
                // A group of calls writes many pages; to fold them back after each would write everything twice at once. Most of it
                // is done beside the writer (`checkpoint`).
                .pragma("wal_autocheckpoint", "16384")
                .pragma("cache_size", "-16384")
                .pragma("temp_store", "MEMORY")
        });
    Ok(Database::connect(options).await?)
}
