//! The generation of the images, a number that changes whenever an image is removed or superseded.
//!
//! The decisions about a batch of calls depend on rows that were read without a lock. The statement that writes the
//! batch compares this number in one lookup instead of reading every image again. On PostgreSQL, it also locks the
//! number until the commit. A transaction that removes or supersedes an image changes the number first. It thereby
//! waits for batches that are being written, and then reads their rows. SQLite has a single writer. On MySQL and
//! MariaDB, batches lock the images instead.

use sea_orm::{ConnectionTrait as _, DbBackend, FromQueryResult};

use super::{Result, connections::Transaction, sql::Sql};

#[derive(FromQueryResult)]
struct Row {
    generation: i64,
}

/// Begins a new generation. Must come before any lock in a transaction that removes or supersedes an image.
pub(super) async fn advance(txn: &Transaction) -> Result<()> {
    if txn.get_database_backend() != DbBackend::MySql {
        Sql::new(txn).text("UPDATE image_generation SET generation = generation + 1").execute(txn).await?;
    }
    Ok(())
}

/// Returns whether the generation is still the current one. If so, it stays current until the transaction ends.
pub(super) async fn keep(txn: &Transaction, generation: i64) -> Result<bool> {
    let current = Sql::new(txn).text("SELECT g.generation FROM image_generation AS g").lock_share("g");
    let rows: Vec<Row> = current.all(txn).await?;
    Ok(rows.iter().any(|row| row.generation == generation))
}
