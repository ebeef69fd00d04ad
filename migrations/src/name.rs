//! Names, as each database has to be told to compare them: byte by byte. Ids differ in case alone, whatever language a server speaks.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// A column of names.
pub fn column(backend: DbBackend, text: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(text)).string_len(128).not_null().take();
    if backend == DbBackend::Postgres {
        column.extra("COLLATE \"C\"");
    }
    column
}

/// A table of such columns.
pub fn table(backend: DbBackend, mut table: TableCreateStatement) -> TableCreateStatement {
    if backend == DbBackend::MySql {
        table.character_set("utf8mb4").collate("utf8mb4_bin");
    }
    table
}
