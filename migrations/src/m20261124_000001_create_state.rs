//! The four tables: images, their replicas, the synchronizations and their targets.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{DbBackend, sea_query::SqliteQueryBuilder},
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [image(), replica(), synchronization(), synchronization_target()] {
            create(manager, &table).await?;
        }
        let db = manager.get_connection();
        for index in INDEXES {
            db.execute_unprepared(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["synchronization_target", "synchronization", "replica", "image"] {
            manager.drop_table(Table::drop().table(Alias::new(table)).to_owned()).await?;
        }
        Ok(())
    }
}

/// The indexes of what is due, of what runs and of what went wrong hold those rows and no others: they stay small whatever has
/// been finished, and accepting a call pays for none that it is not in.
const INDEXES: [&str; 6] = [
    "CREATE INDEX replica_due ON replica (due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX synchronization_of_image ON synchronization (image_id, request_id)",
    "CREATE INDEX synchronization_running ON synchronization (image_id, request_id) WHERE state = 'RUNNING'",
    "CREATE INDEX synchronization_failed ON synchronization (request_id) WHERE state = 'FAILED'",
    "CREATE INDEX synchronization_canceled ON synchronization (request_id) WHERE state = 'CANCELED'",
    "CREATE UNIQUE INDEX synchronization_token ON synchronization (principal, client_token) WHERE client_token IS NOT NULL",
];

/// Creates a table. On SQLite its rows lie in the primary key's own tree, so that writing one is one write and not two.
async fn create(manager: &SchemaManager<'_>, table: &TableCreateStatement) -> Result<(), DbErr> {
    if manager.get_database_backend() == DbBackend::Sqlite {
        let sql = format!("{} WITHOUT ROWID", table.to_string(SqliteQueryBuilder));
        manager.get_connection().execute_unprepared(&sql).await?;
        Ok(())
    } else {
        manager.create_table(table.clone()).await
    }
}

fn name(text: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(text)).string_len(128).not_null().take()
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

fn image() -> TableCreateStatement {
    table(
        "image",
        &["id"],
        vec![
            name("id"),
            text("name"),
            text("version"),
            text("description"),
            text("kind"),
            text("source"),
            name("home_region"),
            text("root_media_type"),
            text("root_digest"),
            number("root_size"),
            number("size"),
            number("created_at"),
        ],
    )
}

fn replica() -> TableCreateStatement {
    table(
        "replica",
        &["image_id", "region_id"],
        vec![
            name("image_id"),
            name("region_id"),
            text("state"),
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

fn synchronization() -> TableCreateStatement {
    table(
        "synchronization",
        &["request_id"],
        vec![
            request_id(),
            name("image_id"),
            text("principal"),
            ColumnDef::new(Alias::new("client_token")).string_len(64).null().take(),
            text("asked"),
            text("targets"),
            number("open"),
            maybe_text("traceparent"),
            maybe_text("tracestate"),
            ColumnDef::new(Alias::new("state")).string_len(16).not_null().take(),
            number("created_at"),
            maybe_number("finished_at"),
        ],
    )
}

fn synchronization_target() -> TableCreateStatement {
    table(
        "synchronization_target",
        &["request_id", "region_id"],
        vec![
            request_id(),
            name("region_id"),
            text("status"),
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
