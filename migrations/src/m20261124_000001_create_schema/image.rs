//! The registered images, their names, and the generation that a removal advances.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::{
    column::{digest, id, nullable_id, nullable_text, number, store_name, table, text},
    idempotent,
};

/// The tables of this module.
pub const TABLES: [&str; 3] = ["image", "image_reference", "image_generation"];

/// Creates the table `image_generation` with its only row, a number that changes whenever an image is removed or
/// superseded. The statement that writes a batch of calls compares the number in one lookup instead of reading every
/// image again. MySQL and MariaDB lock the images instead.
const GENERATION: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS image_generation (id INTEGER PRIMARY KEY CHECK (id = 1), generation BIGINT NOT NULL)",
    "INSERT INTO image_generation (id, generation) VALUES (1, 0) ON CONFLICT DO NOTHING",
];

/// Creates the tables and their indexes.
pub async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let backend = manager.get_database_backend();
    idempotent::create_clustered_table(manager, image(backend)).await?;
    let by_root = "CREATE INDEX image_root_digest ON image (root_digest)";
    idempotent::create_index(manager, "image", "image_root_digest", by_root).await?;
    // MySQL and MariaDB index a prefix of a text; no name is longer than this prefix. They cannot read rows in the
    // order of columns that follow a prefix, so an index in the order of registration would not help them.
    let name = if backend == DbBackend::MySql { "name(128)" } else { "name" };
    idempotent::create_index(manager, "image", "image_name", format!("CREATE INDEX image_name ON image ({name})"))
        .await?;
    idempotent::create_table(manager, image_reference(backend)).await?;
    if backend != DbBackend::MySql {
        let newest_first = "CREATE INDEX image_newest ON image (name, kind, created_at DESC, id DESC)";
        idempotent::create_index(manager, "image", "image_newest", newest_first).await?;
        for statement in GENERATION {
            idempotent::execute(manager, statement).await?;
        }
    }
    Ok(())
}

fn image(backend: DbBackend) -> TableCreateStatement {
    table(
        "image",
        &["id"],
        vec![
            id(backend, "id"),
            text("name"),
            text("version"),
            text("description"),
            text("kind"),
            text("source"),
            id(backend, "home_region"),
            text("root_media_type"),
            digest(backend, "root_digest"),
            number("root_size"),
            number("size"),
            number("created_at"),
            nullable_id(backend, "superseded_by"),
            nullable_text("absent"),
        ],
    )
}

fn image_reference(backend: DbBackend) -> TableCreateStatement {
    table(
        "image_reference",
        &["name"],
        vec![store_name(backend, "name"), digest(backend, "root_digest"), id(backend, "image_id")],
    )
}
