//! Creates every table, grouped by topic.

use sea_orm_migration::prelude::*;

use crate::idempotent;

mod coordination;
mod image;
mod replica;
mod synchronization;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        image::create(manager).await?;
        replica::create(manager).await?;
        synchronization::create(manager).await?;
        coordination::create(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for tables in
            [&coordination::TABLES[..], &synchronization::TABLES[..], &replica::TABLES[..], &image::TABLES[..]]
        {
            for table in tables {
                idempotent::drop_table(manager, table).await?;
            }
        }
        Ok(())
    }
}
