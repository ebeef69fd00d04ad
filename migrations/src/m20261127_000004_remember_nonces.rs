//! Nonces of signed requests, which are taken once.

use sea_orm_migration::prelude::*;

use crate::name;

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
        manager.create_table(name::table(backend, nonce)).await?;
        let index =
            Index::create().name("nonce_expires").table(Alias::new("nonce")).col(Alias::new("expires_at")).take();
        manager.create_index(index).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Alias::new("nonce")).take()).await
    }
}
