//! Uploads that are gone on with by whoever claims a replica next, and replicas that were found damaged.

use sea_orm_migration::prelude::*;

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let suspect = ColumnDef::new(Alias::new("suspect")).boolean().not_null().default(false).take();
        idempotent::add_column(manager, "replica", suspect).await?;
        let backend = manager.get_database_backend();
        let key =
            Index::create().col(Alias::new("image_id")).col(Alias::new("region_id")).col(Alias::new("blob")).take();
        let upload = Table::create()
            .table(Alias::new("upload"))
            .col(name::column(backend, "image_id"))
            .col(name::column(backend, "region_id"))
            .col(name::column(backend, "blob"))
            .col(ColumnDef::new(Alias::new("session")).text().not_null())
            .primary_key(&mut key.clone())
            .take();
        idempotent::create_table(manager, name::table(backend, upload)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_table(manager, "upload").await?;
        idempotent::drop_column(manager, "replica", "suspect").await
    }
}
