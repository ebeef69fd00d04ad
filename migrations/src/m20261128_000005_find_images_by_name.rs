//! Images by their name: all versions of an application.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::idempotent;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // MySQL and MariaDB index a text as far as they are told. No name is longer.
        let column = if manager.get_database_backend() == DbBackend::MySql { "name(128)" } else { "name" };
        let sql = format!("CREATE INDEX image_name ON image ({column})");
        idempotent::create_index(manager, "image", "image_name", sql).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_index(manager, "image", "image_name").await
    }
}
