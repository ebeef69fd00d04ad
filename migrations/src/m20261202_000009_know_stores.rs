//! Regions that are or were configured: when a process last had each, and which store it was.

use sea_orm_migration::prelude::*;

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// Regions with replicas. None has been seen yet: those that are configured are seen as soon as a process starts.
const KNOWN: &str = "INSERT INTO region_store (region_id, seen_at) SELECT DISTINCT r.region_id, 0 FROM replica AS r \
     WHERE NOT EXISTS (SELECT 1 FROM region_store AS s WHERE s.region_id = r.region_id)";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let store = Table::create()
            .table(Alias::new("region_store"))
            .col(name::column(backend, "region_id").primary_key())
            .col(ColumnDef::new(Alias::new("location")).text().null())
            .col(ColumnDef::new(Alias::new("seen_at")).big_integer().not_null())
            .take();
        idempotent::create_table(manager, name::table(backend, store)).await?;
        idempotent::execute(manager, KNOWN).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_table(manager, "region_store").await
    }
}
