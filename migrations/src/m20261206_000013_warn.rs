//! What an image arrived without, in a region and in what a synchronization has become there; and which entries of its indexes were not
//! there when it was registered.

use sea_orm_migration::prelude::*;

use crate::idempotent;

#[derive(DeriveMigrationName)]
pub struct Migration;

const COLUMNS: [(&str, &str); 3] =
    [("replica", "warnings"), ("synchronization_target", "warnings"), ("image", "absent")];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in COLUMNS {
            let column = ColumnDef::new(Alias::new(column)).text().null().take();
            idempotent::add_column(manager, table, column).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in COLUMNS {
            idempotent::drop_column(manager, table, column).await?;
        }
        Ok(())
    }
}
