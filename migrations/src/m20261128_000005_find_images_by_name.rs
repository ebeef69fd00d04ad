//! Images by their name: all versions of an application.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // MySQL and MariaDB index a text as far as they are told. No name is longer.
        let column = if manager.get_database_backend() == DbBackend::MySql { "name(128)" } else { "name" };
        let sql = format!("CREATE INDEX image_name ON image ({column})");
        manager.get_connection().execute_unprepared(&sql).await.map(drop)
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name("image_name").table(Alias::new("image")).to_owned()).await
    }
}
