//! The generation of the images: one number that changes whenever an image is removed or superseded.
//!
//! A group of calls is decided by what was read before it is written. The statement that writes it compares this number, in one look-up,
//! instead of looking at each image once more, and on PostgreSQL locks it until the group is committed. Whoever removes or supersedes an
//! image changes it before anything else, and so waits for the groups that are being written, and reads what they have written. SQLite has
//! one writer anyway; on MySQL, the images themselves are locked.

use sea_orm::{ConnectionTrait as _, DbBackend, FromQueryResult};

use super::{Result, database::Transaction, sql::Sql};

#[derive(FromQueryResult)]
struct Current {
    generation: i64,
}

/// Begins a new generation. Call it before anything else is locked in the transaction that removes or supersedes an image.
pub(super) async fn advance(txn: &Transaction) -> Result<()> {
    if txn.get_database_backend() != DbBackend::MySql {
        Sql::on(txn).text("UPDATE image_generation SET generation = generation + 1").execute(txn).await?;
    }
    Ok(())
}

/// Whether it is still this generation; if so, it is until the transaction has ended.
pub(super) async fn keep(txn: &Transaction, generation: i64) -> Result<bool> {
    let current = Sql::on(txn).text("SELECT g.generation FROM image_generation AS g").share("g");
    let rows: Vec<Current> = current.all(txn).await?;
    Ok(rows.iter().any(|row| row.generation == generation))
}
