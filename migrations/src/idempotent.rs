//! Changes of the schema that may be applied twice.
//!
//! MySQL and MariaDB commit at every change of the schema, so a step that was interrupted has been applied in part, and is applied
//! again as a whole. Each change therefore looks first whether it is there. Steps make their changes by these functions alone.

use sea_orm_migration::{prelude::*, sea_orm::Statement};

/// Executes one statement.
pub async fn execute(manager: &SchemaManager<'_>, sql: impl Into<String>) -> Result<(), DbErr> {
    let statement = Statement::from_string(manager.get_database_backend(), sql);
    manager.get_connection().execute_raw(statement).await.map(drop)
}

/// Creates a table unless there is one of that name.
pub async fn create_table(manager: &SchemaManager<'_>, mut table: TableCreateStatement) -> Result<(), DbErr> {
    manager.create_table(table.if_not_exists().take()).await
}

/// Adds a column unless the table has it.
pub async fn add_column(manager: &SchemaManager<'_>, table: &'static str, column: ColumnDef) -> Result<(), DbErr> {
    if manager.has_column(table, column.get_column_name()).await? {
        return Ok(());
    }
    manager.alter_table(Table::alter().table(Alias::new(table)).add_column(column).take()).await
}

/// Removes a column if the table has it.
pub async fn drop_column(manager: &SchemaManager<'_>, table: &'static str, column: &'static str) -> Result<(), DbErr> {
    if !manager.has_column(table, column).await? {
        return Ok(());
    }
    manager.alter_table(Table::alter().table(Alias::new(table)).drop_column(Alias::new(column)).take()).await
}

/// Creates an index by a `CREATE INDEX` statement unless the table has one of that name.
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

/// Removes an index if the table has one of that name.
pub async fn drop_index(manager: &SchemaManager<'_>, table: &'static str, name: &'static str) -> Result<(), DbErr> {
    if !manager.has_index(table, name).await? {
        return Ok(());
    }
    manager.drop_index(Index::drop().name(name).table(Alias::new(table)).to_owned()).await
}

/// Removes a table if there is one of that name.
pub async fn drop_table(manager: &SchemaManager<'_>, table: &'static str) -> Result<(), DbErr> {
    manager.drop_table(Table::drop().table(Alias::new(table)).if_exists().take()).await
}
