//! What was learned about how registries take blobs.

use sea_orm_migration::prelude::*;

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// The longest address of a registry that is remembered.
const SERVICE_LENGTH: u32 = 400;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let habits = Table::create()
            .table(Alias::new("registry_habits"))
            .col(name::column(backend, "service").string_len(SERVICE_LENGTH).primary_key())
            .col(ColumnDef::new(Alias::new("habits")).text().not_null())
            .col(ColumnDef::new(Alias::new("learned_at")).big_integer().not_null())
            .take();
        idempotent::create_table(manager, name::table(backend, habits)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_table(manager, "registry_habits").await
    }
}
