//! The embedded database.

use sea_orm::{ConnectOptions, Database, DatabaseConnection, sqlx::Connection as _};

use super::{super::Result, Settings, ownership::make_file};

/// How many times longer than a question whatever writes may take: it waits for those before it, each of which waits for the disk.
pub const SLOW_DISK: u32 = 3;

/// How long the log may stay, in bytes: as long as it may become before a commit has to fold it back.
pub const LOG_LIMIT: i64 = LOG_PAGES * PAGE;

/// The same in pages.
const LOG_PAGES: i64 = 16_384;

/// The size of a page, in bytes: what SQLite takes by itself.
pub const PAGE: i64 = 4_096;

pub async fn connect(settings: &Settings, connections: u32) -> Result<DatabaseConnection> {
    // What fails here fails there too, and is told then.
    let _ = make_file(&settings.url);
    let patience = settings.patience;
    let mut options = ConnectOptions::new(&settings.url);
    options
        .max_connections(connections)
        // Others write on the same connection, and each of them may take long on a slow disk.
        .acquire_timeout(settings.timeout * SLOW_DISK)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_pool_opts(|pool| {
            pool.after_release(|connection, _| {
                Box::pin(async move {
                    // What was asked before has been done then. A transaction that could not be committed, as the disk is full, or could not
                    // be rolled back, goes with its connection.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
        })
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
                .pragma("wal_autocheckpoint", LOG_PAGES.to_string())
                // What a long reader had the log grow to is given back, once it is folded back and written from its beginning.
                .pragma("journal_size_limit", LOG_LIMIT.to_string())
                .pragma("cache_size", "-16384")
                .pragma("temp_store", "MEMORY")
        });
    Ok(Database::connect(options).await?)
}

#[cfg(test)]
mod tests {
    use sea_orm::ConnectionTrait as _;

    use crate::{
        domain::Image,
        state::embedded::{Embedded, ask},
    };

    /// What a full disk stops may be tried again, and the next transaction begins afresh.
    #[tokio::test]
    async fn a_full_disk_passes_and_leaves_no_transaction_behind() {
        let embedded = Embedded::open(["there"], |settings| settings).await;
        let state = &embedded.state;
        embedded.add("an-image").await;
        let (image, _) = state.image_get(&"an-image".parse().expect("an id")).await.expect("it is there");
        for round in 0..3 {
            let limit = async |pages: u32| {
                let writers = state.0.db.writers().await;
                writers.execute_unprepared(&format!("PRAGMA max_page_count = {pages}")).await.expect("a limit");
            };
            // No more than there are.
            limit(1).await;
            let large = |n: usize| Image {
                id: format!("large-{round}-{n}").parse().expect("an id"),
                description: "d".repeat(100_000),
                ..image.clone()
            };
            let mut refused = None;
            for n in 0..10 {
                refused = refused.or(state.image_add(&large(n)).await.err());
            }
            let refused = refused.expect("there is no room");
            assert!(refused.is_temporary(), "{refused:?}");
            limit(1_000_000).await;
            state.image_add(&large(10)).await.expect("there is room again");
            state.accept(ask("an-image")).await.expect("it is accepted");
        }
        embedded.end().await;
    }
}
