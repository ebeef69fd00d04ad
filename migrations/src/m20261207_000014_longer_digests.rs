//! Room for digests by SHA-512, which have 135 characters.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::idempotent;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// The longest digest that is kept, in characters.
const DIGEST_LENGTH: u32 = 160;

/// How a column was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    /// By [`crate::name::column`].
    Name,
    /// As one that may be empty.
    Nullable,
}

const COLUMNS: [(&str, &str, Column); 6] = [
    ("upload", "blob", Column::Name),
    ("written_blob", "blob", Column::Name),
    ("read_blob", "blob", Column::Name),
    ("image_reference", "root_digest", Column::Name),
    ("published", "root_digest", Column::Nullable),
    ("published", "begun_digest", Column::Nullable),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column, kind) in COLUMNS {
            if let Some(sql) = widen(manager.get_database_backend(), table, column, kind) {
                idempotent::execute(manager, sql).await?;
            }
        }
        Ok(())
    }

    /// The columns stay as they are: the step before works with longer ones, and what is in them may be longer.
    async fn down(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Ok(())
    }
}

/// The statement that makes a column longer. SQLite keeps texts of any length, whatever a column says.
fn widen(backend: DbBackend, table: &str, column: &str, kind: Column) -> Option<String> {
    match backend {
        DbBackend::Postgres => {
            let collation = if kind == Column::Name { " COLLATE \"C\"" } else { "" };
            Some(format!("ALTER TABLE {table} ALTER COLUMN \"{column}\" TYPE varchar({DIGEST_LENGTH}){collation}"))
        }
        DbBackend::MySql => {
            let null = if kind == Column::Name { "NOT NULL" } else { "NULL" };
            Some(format!("ALTER TABLE {table} MODIFY COLUMN `{column}` varchar({DIGEST_LENGTH}) {null}"))
        }
        _ => None,
    }
}
