//! Replicas do not outlive their image. Those that an earlier version left behind when an image was removed while a call for it was
//! accepted are deleted; what became of the calls stays in `synchronization_target`. One that is still to be copied is left to its
//! worker, who ends the calls that wait for it.
//!
//! It also adds a table for the readiness probe's write, and an index that gives the images of a name newest first.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

const DELETE: &str = "DELETE FROM replica WHERE due_at IS NULL \
                      AND NOT EXISTS (SELECT 1 FROM image WHERE image.id = replica.image_id)";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        idempotent::execute(manager, DELETE).await?;
        // MySQL and MariaDB index the beginning of a text only, and do not read in the order of what follows it.
        if backend != DbBackend::MySql {
            let index = "CREATE INDEX image_newest ON image (name, kind, created_at DESC, id DESC)";
            idempotent::create_index(manager, "image", "image_newest", index).await?;
        }
        let probe = Table::create()
            .table(Alias::new("write_probe"))
            .col(name::column(backend, "name").primary_key())
            .col(ColumnDef::new(Alias::new("written_at")).big_integer().not_null())
            .take();
        idempotent::create_table(manager, name::table(backend, probe)).await
    }

    /// What was deleted said nothing that was true.
    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_table(manager, "write_probe").await?;
        idempotent::drop_index(manager, "image", "image_newest").await
    }
}
