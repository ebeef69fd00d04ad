//! On SQLite and PostgreSQL, a number that changes whenever an image is removed or superseded.
//!
//! A group of calls is decided by what was read before it is written. The statement that writes it compares this number, in one look-up,
//! instead of looking at each image once more. On MySQL and MariaDB, the images are locked instead.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::idempotent;

#[derive(DeriveMigrationName)]
pub struct Migration;

const TABLE: &str = "image_generation";

const CREATE: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS image_generation (id INTEGER PRIMARY KEY CHECK (id = 1), generation BIGINT NOT NULL)",
    "INSERT INTO image_generation (id, generation) VALUES (1, 0) ON CONFLICT DO NOTHING",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() != DbBackend::MySql {
            for statement in CREATE {
                idempotent::execute(manager, statement).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() != DbBackend::MySql {
            idempotent::drop_table(manager, TABLE).await?;
        }
        Ok(())
    }
}
