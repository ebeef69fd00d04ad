//! Uploads that their store did not abort when it was asked, and that are no copy's any more.

use sea_orm_migration::prelude::*;

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let strays = Table::create()
            .table(Alias::new("stray_upload"))
            .col(name::column(backend, "id").primary_key())
            .col(name::column(backend, "region_id"))
            .col(ColumnDef::new(Alias::new("session")).text().not_null())
            .col(ColumnDef::new(Alias::new("tries")).integer().not_null())
            .col(ColumnDef::new(Alias::new("due_at")).big_integer().not_null())
            .take();
        idempotent::create_table(manager, name::table(backend, strays)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_table(manager, "stray_upload").await
    }
}
