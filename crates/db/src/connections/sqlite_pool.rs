//! Connection pools of SQLite.

use sea_orm::{ConnectOptions, Database, DatabaseConnection, sqlx::Connection as _};

use super::{super::Result, Settings, ownership::create_file};

/// Factor by which a write's deadline exceeds that of a query: a write waits for the earlier writes, and each of them
/// waits for the disk.
pub const SLOW_DISK_FACTOR: u32 = 3;

/// Maximum size of the write-ahead log after a checkpoint, in bytes.
pub const WAL_LIMIT_BYTES: i64 = WAL_LIMIT_PAGES * PAGE_BYTES;

/// Size of the write-ahead log at which a commit runs a checkpoint itself, in pages.
const WAL_LIMIT_PAGES: i64 = 16_384;

/// Size of a page in bytes, SQLite's default.
pub const PAGE_BYTES: i64 = 4_096;

/// Opens a pool, and creates the database's file if it does not exist.
pub async fn connect(settings: &Settings, connections: u32) -> Result<DatabaseConnection> {
    // The connection reports the same failure.
    let _ = create_file(&settings.url);
    let busy_timeout = settings.acquire_timeout;
    let mut options = ConnectOptions::new(&settings.url);
    options
        .max_connections(connections)
        // All writes share one connection, and each may take long on a slow disk.
        .acquire_timeout(settings.timeout * SLOW_DISK_FACTOR)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_pool_opts(|pool| {
            pool.after_release(|connection, _| {
                Box::pin(async move {
                    // Waits for the last query. Closes a connection whose transaction is still open because both its
                    // commit (disk full) and its rollback failed.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
        })
        .map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .create_if_missing(true)
                .busy_timeout(busy_timeout)
                .foreign_keys(false)
                .pragma("journal_mode", "WAL")
                // A commit is on disk before it is acknowledged.
                .pragma("synchronous", "FULL")
                // A batch writes many pages. A checkpoint after each batch would write them a second time while the
                // batch waits. Most checkpoints run concurrently with the writer (`checkpoint`).
                .pragma("wal_autocheckpoint", WAL_LIMIT_PAGES.to_string())
                // Truncates a log that grew during a long read, once it restarts from its beginning.
                .pragma("journal_size_limit", WAL_LIMIT_BYTES.to_string())
                .pragma("cache_size", "-16384")
                .pragma("temp_store", "MEMORY")
        });
    Ok(Database::connect(options).await?)
}

#[cfg(test)]
mod tests {
    use domain::Image;
    use sea_orm::ConnectionTrait as _;

    use crate::testing::{TestDb, new_synchronization};

    /// A full disk is a temporary error, and the failed transaction is rolled back.
    #[tokio::test]
    async fn a_full_disk_is_temporary_and_leaves_no_transaction_open() {
        let fixture = TestDb::open(["there"], |settings| settings).await;
        let db = &fixture.db;
        fixture.add("an-image").await;
        let (image, _) = db.image_get(&"an-image".parse().expect("an id")).await.expect("the image");
        for round in 0..3 {
            let limit = async |pages: u32| {
                let pool = db.0.connections.write_pool().await;
                pool.execute_unprepared(&format!("PRAGMA max_page_count = {pages}")).await.expect("a limit");
            };
            // SQLite raises the limit to the current size.
            limit(1).await;
            let large = |n: usize| Image {
                id: format!("large-{round}-{n}").parse().expect("an id"),
                description: "d".repeat(100_000),
                ..image.clone()
            };
            let mut error = None;
            for n in 0..10 {
                error = error.or(db.image_add(&large(n)).await.err());
            }
            let error = error.expect("a full disk");
            assert!(error.is_temporary(), "{error:?}");
            limit(1_000_000).await;
            db.image_add(&large(10)).await.expect("enough space");
            db.accept(new_synchronization("an-image")).await.expect("an id");
        }
        fixture.end().await;
    }
}
