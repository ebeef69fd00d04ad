//! The four tables: images, their replicas, the synchronizations and their targets.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{DbBackend, sea_query::SqliteQueryBuilder},
};

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        for table in [image(backend), replica(backend), synchronization(backend), synchronization_target(backend)] {
            create(manager, table).await?;
        }
        for (table, name, sql) in indexes(backend) {
            idempotent::create_index(manager, table, name, *sql).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["synchronization_target", "synchronization", "replica", "image"] {
            idempotent::drop_table(manager, table).await?;
        }
        Ok(())
    }
}

/// The indexes of what is due, of what runs and of what went wrong hold those rows and no others, where the database can do that:
/// they stay small whatever has been finished, and accepting a call pays for none that it is not in. Each with its table and name.
const INDEXES: [(&str, &str, &str); 6] = [
    ("replica", "replica_due", "CREATE INDEX replica_due ON replica (due_at) WHERE due_at IS NOT NULL"),
    (
        "synchronization",
        "synchronization_of_image",
        "CREATE INDEX synchronization_of_image ON synchronization (image_id, request_id)",
    ),
    (
        "synchronization",
        "synchronization_running",
        "CREATE INDEX synchronization_running ON synchronization (image_id, request_id) WHERE state = 'RUNNING'",
    ),
    (
        "synchronization",
        "synchronization_failed",
        "CREATE INDEX synchronization_failed ON synchronization (request_id) WHERE state = 'FAILED'",
    ),
    (
        "synchronization",
        "synchronization_canceled",
        "CREATE INDEX synchronization_canceled ON synchronization (request_id) WHERE state = 'CANCELED'",
    ),
    (
        "synchronization",
        "synchronization_token",
        "CREATE UNIQUE INDEX synchronization_token ON synchronization (principal, client_token) WHERE client_token IS NOT NULL",
    ),
];

/// The same for MySQL and MariaDB, whose indexes hold every row.
const WHOLE_INDEXES: [(&str, &str, &str); 5] = [
    ("replica", "replica_due", "CREATE INDEX replica_due ON replica (due_at)"),
    (
        "synchronization",
        "synchronization_of_image",
        "CREATE INDEX synchronization_of_image ON synchronization (image_id, request_id)",
    ),
    (
        "synchronization",
        "synchronization_running",
        "CREATE INDEX synchronization_running ON synchronization (image_id, state, request_id)",
    ),
    (
        "synchronization",
        "synchronization_in_state",
        "CREATE INDEX synchronization_in_state ON synchronization (state, request_id)",
    ),
    (
        "synchronization",
        "synchronization_token",
        "CREATE UNIQUE INDEX synchronization_token ON synchronization (principal, client_token)",
    ),
];

fn indexes(backend: DbBackend) -> &'static [(&'static str, &'static str, &'static str)] {
    if backend == DbBackend::MySql { &WHOLE_INDEXES } else { &INDEXES }
}

/// Creates a table. On SQLite its rows lie in the primary key's own tree, so that writing one is one write and not two.
async fn create(manager: &SchemaManager<'_>, mut table: TableCreateStatement) -> Result<(), DbErr> {
    let backend = manager.get_database_backend();
    if backend == DbBackend::Sqlite {
        let sql = format!("{} WITHOUT ROWID", table.if_not_exists().to_string(SqliteQueryBuilder));
        idempotent::execute(manager, sql).await
    } else {
        idempotent::create_table(manager, name::table(backend, table)).await
    }
}

fn word(column: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(column)).string_len(16).not_null().take()
}

fn text(column: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(column)).text().not_null().take()
}

fn maybe_text(column: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(column)).text().null().take()
}

fn number(column: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(column)).big_integer().not_null().default(0).take()
}

fn maybe_number(column: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(column)).big_integer().null().take()
}

fn request_id() -> ColumnDef {
    ColumnDef::new(Alias::new("request_id")).uuid().not_null().take()
}

fn table(name: &'static str, key: &[&'static str], columns: Vec<ColumnDef>) -> TableCreateStatement {
    let mut table = Table::create().table(Alias::new(name)).take();
    for mut column in columns {
        table.col(&mut column);
    }
    let mut primary = Index::create().take();
    for column in key {
        primary.col(Alias::new(*column));
    }
    table.primary_key(&mut primary).take()
}

fn image(backend: DbBackend) -> TableCreateStatement {
    table(
        "image",
        &["id"],
        vec![
            name::column(backend, "id"),
            text("name"),
            text("version"),
            text("description"),
            text("kind"),
            text("source"),
            name::column(backend, "home_region"),
            text("root_media_type"),
            text("root_digest"),
            number("root_size"),
            number("size"),
            number("created_at"),
        ],
    )
}

fn replica(backend: DbBackend) -> TableCreateStatement {
    table(
        "replica",
        &["image_id", "region_id"],
        vec![
            name::column(backend, "image_id"),
            name::column(backend, "region_id"),
            word("state"),
            maybe_number("due_at"),
            number("attempt"),
            number("faults"),
            number("fence"),
            maybe_text("lease_owner"),
            number("bytes_total"),
            number("bytes_copied"),
            number("bytes_skipped"),
            maybe_text("fault_kind"),
            maybe_text("fault_message"),
            maybe_number("started_at"),
            maybe_number("finished_at"),
        ],
    )
}

fn synchronization(backend: DbBackend) -> TableCreateStatement {
    table(
        "synchronization",
        &["request_id"],
        vec![
            request_id(),
            name::column(backend, "image_id"),
            ColumnDef::new(Alias::new("principal")).string_len(256).not_null().take(),
            ColumnDef::new(Alias::new("client_token")).string_len(64).null().take(),
            text("asked"),
            text("targets"),
            number("open"),
            maybe_text("traceparent"),
            maybe_text("tracestate"),
            word("state"),
            number("created_at"),
            maybe_number("finished_at"),
        ],
    )
}

fn synchronization_target(backend: DbBackend) -> TableCreateStatement {
    table(
        "synchronization_target",
        &["request_id", "region_id"],
        vec![
            request_id(),
            name::column(backend, "region_id"),
            word("status"),
            number("attempt"),
            number("bytes_total"),
            number("bytes_copied"),
            number("bytes_skipped"),
            maybe_text("fault_kind"),
            maybe_text("fault_message"),
            maybe_number("started_at"),
            maybe_number("finished_at"),
        ],
    )
}
