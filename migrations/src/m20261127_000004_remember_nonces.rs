//! Nonces of signed requests, which are taken once.

use sea_orm_migration::prelude::*;

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let nonce = Table::create()
            .table(Alias::new("nonce"))
            .col(name::column(backend, "digest").primary_key())
            .col(ColumnDef::new(Alias::new("expires_at")).big_integer().not_null())
            .take();
        idempotent::create_table(manager, name::table(backend, nonce)).await?;
        let index = "CREATE INDEX nonce_expires ON nonce (expires_at)";
        idempotent::create_index(manager, "nonce", "nonce_expires", index).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_table(manager, "nonce").await
    }
}
