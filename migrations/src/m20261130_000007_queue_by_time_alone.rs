//! PostgreSQL: the queues of the regions without the images in them. Whoever claims reads and locks the row anyway; without its image,
//! those that are asked for at the same time share an entry of the index, and accepting a call costs less.
//!
//! On SQLite and MySQL, an index holds the table's primary key in any case.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::idempotent;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// In the place of the index of that name, which is there for as long as it takes to make the other.
async fn replace(manager: &SchemaManager<'_>, columns: &str) -> Result<(), DbErr> {
    if manager.get_database_backend() != DbBackend::Postgres {
        return Ok(());
    }
    let create = format!("CREATE INDEX replica_due_anew ON replica ({columns}) WHERE due_at IS NOT NULL");
    for sql in [
        create.as_str(),
        "DROP INDEX replica_due_in_region",
        "ALTER INDEX replica_due_anew RENAME TO replica_due_in_region",
    ] {
        idempotent::execute(manager, sql).await?;
    }
    Ok(())
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        replace(manager, "region_id, due_at").await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        replace(manager, "region_id, due_at, image_id").await
    }
}
