//! Schema changes that can be applied twice.
//!
//! MySQL and MariaDB commit at every change of the schema, so that an interrupted step may be partially applied. The
//! step is applied again as a whole, and each change first checks whether it has already been made. Steps change the
//! schema only through these functions.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{DbBackend, Statement, sea_query::SqliteQueryBuilder},
};

/// Executes one statement.
pub async fn execute(manager: &SchemaManager<'_>, sql: impl Into<String>) -> Result<(), DbErr> {
    let statement = Statement::from_string(manager.get_database_backend(), sql);
    manager.get_connection().execute_raw(statement).await.map(drop)
}

/// Creates a table unless one of that name exists. On MySQL and MariaDB, its texts compare byte by byte.
pub async fn create_table(manager: &SchemaManager<'_>, mut table: TableCreateStatement) -> Result<(), DbErr> {
    if manager.get_database_backend() == DbBackend::MySql {
        table.character_set("utf8mb4").collate("utf8mb4_bin");
    }
    manager.create_table(table.if_not_exists().take()).await
}

/// Like [`create_table`]; on SQLite the rows are stored in the primary key's own tree, so that writing one row is one
/// write instead of two.
pub async fn create_clustered_table(manager: &SchemaManager<'_>, mut table: TableCreateStatement) -> Result<(), DbErr> {
    if manager.get_database_backend() != DbBackend::Sqlite {
        return create_table(manager, table).await;
    }
    execute(manager, format!("{} WITHOUT ROWID", table.if_not_exists().to_string(SqliteQueryBuilder))).await
}

/// Creates an index with a `CREATE INDEX` statement unless the table has one of that name.
pub async fn create_index(
    manager: &SchemaManager<'_>,
    table: &'static str,
    name: &'static str,
    sql: impl Into<String>,
) -> Result<(), DbErr> {
    if manager.has_index(table, name).await? {
        return Ok(());
    }
    execute(manager, sql).await
}

/// Drops a table if one of that name exists.
pub async fn drop_table(manager: &SchemaManager<'_>, table: &'static str) -> Result<(), DbErr> {
    manager.drop_table(Table::drop().table(Alias::new(table)).if_exists().take()).await
}
