//! Tables of the replicas and of the records about copies: publications, written and read blobs, uploads, copies by
//! ECS.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::{
    column::{
        boolean, digest, id, nullable_digest, nullable_id, nullable_number, nullable_text, nullable_word, number,
        store_name, table, text, word,
    },
    idempotent,
};

/// The tables of this module.
pub const TABLES: [&str; 6] = ["replica", "published", "written_blob", "read_blob", "upload", "ecs_copy"];

/// Storage parameters of `replica`, whose rows are updated several times. Free space on a page keeps an update from
/// looking for another page. Frequent vacuuming removes dead rows before the index grows with them.
const STORAGE: &str = "ALTER TABLE replica SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0)";

/// Creates the tables and their indexes.
pub async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let backend = manager.get_database_backend();
    idempotent::create_clustered_table(manager, replica(backend)).await?;
    idempotent::create_index(manager, "replica", "replica_due", due(backend)).await?;
    if backend == DbBackend::Postgres {
        idempotent::execute(manager, STORAGE).await?;
    }
    for table in [published(backend), written_blob(backend), read_blob(backend), upload(backend), ecs_copy(backend)] {
        idempotent::create_table(manager, table).await?;
    }
    Ok(())
}

/// Returns the statement that creates the queue of every region, ordered by time. Where the database supports partial
/// indexes, the index holds only due rows, so that it stays small regardless of the number of ended copies. On
/// PostgreSQL it leaves out the image: a claim reads and locks the row anyway, and rows that are requested together
/// share one entry. SQLite and MySQL add the primary key to every index.
fn due(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "CREATE INDEX replica_due ON replica (region_id, due_at) WHERE due_at IS NOT NULL",
        DbBackend::Sqlite => {
            "CREATE INDEX replica_due ON replica (region_id, due_at, image_id) WHERE due_at IS NOT NULL"
        }
        _ => "CREATE INDEX replica_due ON replica (region_id, due_at, image_id)",
    }
}

fn replica(backend: DbBackend) -> TableCreateStatement {
    table(
        "replica",
        &["image_id", "region_id"],
        vec![
            id(backend, "image_id"),
            id(backend, "region_id"),
            word("state"),
            nullable_number("due_at"),
            nullable_number("waiting_since"),
            number("attempt"),
            number("faults"),
            number("fence"),
            nullable_text("lease_owner"),
            boolean("suspect"),
            number("bytes_total"),
            number("bytes_copied"),
            number("bytes_skipped"),
            nullable_text("fault_kind"),
            nullable_text("fault_message"),
            nullable_number("started_at"),
            nullable_number("finished_at"),
            nullable_id(backend, "fed_from"),
            nullable_word("verification"),
            nullable_text("warnings"),
        ],
    )
}

fn published(backend: DbBackend) -> TableCreateStatement {
    table(
        "published",
        &["region_id", "name"],
        vec![
            id(backend, "region_id"),
            store_name(backend, "name"),
            nullable_digest(backend, "root_digest"),
            nullable_digest(backend, "pending_digest"),
            id(backend, "image_id"),
            nullable_word("verification"),
            nullable_text("location"),
            number("changed_at"),
        ],
    )
}

fn written_blob(backend: DbBackend) -> TableCreateStatement {
    table(
        "written_blob",
        &["image_id", "region_id", "blob"],
        vec![id(backend, "image_id"), id(backend, "region_id"), digest(backend, "blob")],
    )
}

fn read_blob(backend: DbBackend) -> TableCreateStatement {
    table(
        "read_blob",
        &["region_id", "location", "blob"],
        vec![
            id(backend, "region_id"),
            store_name(backend, "location"),
            digest(backend, "blob"),
            nullable_text("witness"),
        ],
    )
}

fn upload(backend: DbBackend) -> TableCreateStatement {
    table(
        "upload",
        &["image_id", "region_id", "blob"],
        vec![id(backend, "image_id"), id(backend, "region_id"), digest(backend, "blob"), text("session")],
    )
}

fn ecs_copy(backend: DbBackend) -> TableCreateStatement {
    table(
        "ecs_copy",
        &["image_id", "region_id"],
        vec![
            id(backend, "image_id"),
            id(backend, "region_id"),
            number("generation"),
            number("since"),
            nullable_id(backend, "ecs_image_id"),
            boolean("finished"),
            nullable_id(backend, "discarded"),
        ],
    )
}
