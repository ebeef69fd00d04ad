//! Copies that ECS makes: which image it is, for whoever watches it next and for whoever asks.

use sea_orm_migration::prelude::*;

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let number = |name: &'static str| ColumnDef::new(Alias::new(name)).big_integer().not_null().take();
        let id = |name: &'static str| ColumnDef::new(Alias::new(name)).string_len(128).null().take();
        let copy = Table::create()
            .table(Alias::new("ecs_copy"))
            .col(name::column(backend, "image_id"))
            .col(name::column(backend, "region_id"))
            .col(number("generation"))
            .col(number("since"))
            .col(id("ecs_image_id"))
            .col(ColumnDef::new(Alias::new("finished")).boolean().not_null())
            .col(id("discarded"))
            .primary_key(&mut Index::create().col(Alias::new("image_id")).col(Alias::new("region_id")).take())
            .take();
        idempotent::create_table(manager, name::table(backend, copy)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_table(manager, "ecs_copy").await
    }
}
