//! On SQLite, a number that changes whenever an image is removed or superseded.
//!
//! A group of calls is decided by what was read before it is written. The statement that writes it compares this number, in one look-up,
//! instead of looking at each image once more. Database servers lock the images instead. Triggers count, so that no statement can forget to.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::idempotent;

#[derive(DeriveMigrationName)]
pub struct Migration;

const TABLE: &str = "image_generation";

const CREATE: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS image_generation (id INTEGER PRIMARY KEY CHECK (id = 1), generation INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO image_generation (id, generation) VALUES (1, 0)",
    "CREATE TRIGGER IF NOT EXISTS image_removed AFTER DELETE ON image \
     BEGIN UPDATE image_generation SET generation = generation + 1; END",
    "CREATE TRIGGER IF NOT EXISTS image_superseded AFTER UPDATE OF superseded_by ON image \
     BEGIN UPDATE image_generation SET generation = generation + 1; END",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Sqlite {
            for statement in CREATE {
                idempotent::execute(manager, statement).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Sqlite {
            for trigger in ["image_removed", "image_superseded"] {
                idempotent::execute(manager, format!("DROP TRIGGER IF EXISTS {trigger}")).await?;
            }
            idempotent::drop_table(manager, TABLE).await?;
        }
        Ok(())
    }
}
