//! The accepted calls and the outcomes of their regions.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::{
    column::{id, nullable_number, nullable_text, nullable_word, number, table, text, word},
    idempotent,
};

/// The tables of this module.
pub const TABLES: [&str; 2] = ["synchronization", "synchronization_target"];

/// Partial indexes by state. Each index stays small regardless of the number of rows outside it, and accepting a call
/// updates only the indexes that contain its row. A running synchronization is in no index of another state.
const PARTIAL_INDEXES: [(&str, &str); 5] = [
    (
        "synchronization_running",
        "CREATE INDEX synchronization_running ON synchronization (image_id, request_id) WHERE state = 'RUNNING'",
    ),
    (
        "synchronization_ended",
        "CREATE INDEX synchronization_ended ON synchronization (image_id, request_id) WHERE state <> 'RUNNING'",
    ),
    (
        "synchronization_failed",
        "CREATE INDEX synchronization_failed ON synchronization (request_id) WHERE state = 'FAILED'",
    ),
    (
        "synchronization_canceled",
        "CREATE INDEX synchronization_canceled ON synchronization (request_id) WHERE state = 'CANCELED'",
    ),
    (
        "synchronization_token",
        "CREATE UNIQUE INDEX synchronization_token ON synchronization (principal, client_token) WHERE client_token IS NOT NULL",
    ),
];

/// Lists the running synchronizations, newest first: a few among millions of rows.
const RUNNING_LISTED: (&str, &str) = (
    "synchronization_running_listed",
    "CREATE INDEX synchronization_running_listed ON synchronization (request_id) WHERE state = 'RUNNING'",
);

/// The indexes of MySQL and MariaDB, which do not support partial indexes.
const FULL_INDEXES: [(&str, &str); 4] = [
    ("synchronization_of_image", "CREATE INDEX synchronization_of_image ON synchronization (image_id, request_id)"),
    (
        "synchronization_running",
        "CREATE INDEX synchronization_running ON synchronization (image_id, state, request_id)",
    ),
    ("synchronization_in_state", "CREATE INDEX synchronization_in_state ON synchronization (state, request_id)"),
    ("synchronization_token", "CREATE UNIQUE INDEX synchronization_token ON synchronization (principal, client_token)"),
];

/// Leaves free space on the pages, because rows are updated a few times; see the storage of the table `replica`.
const STORAGE: &str = "ALTER TABLE synchronization SET (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05)";

/// Creates the tables and their indexes.
pub async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let backend = manager.get_database_backend();
    idempotent::create_clustered_table(manager, synchronization(backend)).await?;
    let indexes = if backend == DbBackend::MySql { &FULL_INDEXES[..] } else { &PARTIAL_INDEXES[..] };
    for (name, sql) in indexes {
        idempotent::create_index(manager, "synchronization", name, *sql).await?;
    }
    if backend == DbBackend::Postgres {
        let (name, sql) = RUNNING_LISTED;
        idempotent::create_index(manager, "synchronization", name, sql).await?;
        idempotent::execute(manager, STORAGE).await?;
    }
    idempotent::create_clustered_table(manager, synchronization_target(backend)).await
}

fn request_id() -> ColumnDef {
    ColumnDef::new(Alias::new("request_id")).uuid().not_null().take()
}

fn synchronization(backend: DbBackend) -> TableCreateStatement {
    table(
        "synchronization",
        &["request_id"],
        vec![
            request_id(),
            id(backend, "image_id"),
            ColumnDef::new(Alias::new("principal")).string_len(256).not_null().take(),
            ColumnDef::new(Alias::new("client_token")).string_len(64).null().take(),
            text("parameters"),
            text("targets"),
            number("open"),
            nullable_text("traceparent"),
            nullable_text("tracestate"),
            word("state"),
            number("created_at"),
            nullable_number("finished_at"),
            nullable_number("overwrite"),
        ],
    )
}

fn synchronization_target(backend: DbBackend) -> TableCreateStatement {
    table(
        "synchronization_target",
        &["request_id", "region_id"],
        vec![
            request_id(),
            id(backend, "region_id"),
            word("status"),
            number("attempt"),
            number("bytes_total"),
            number("bytes_copied"),
            number("bytes_skipped"),
            nullable_text("fault_kind"),
            nullable_text("fault_message"),
            nullable_number("started_at"),
            nullable_number("finished_at"),
            nullable_word("verification"),
            nullable_text("warnings"),
        ],
    )
}
