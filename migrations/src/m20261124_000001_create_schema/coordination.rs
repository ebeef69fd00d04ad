//! Tables that the processes on one database share: the leader's lease, locks of regions, recorded stores and
//! registries, stray uploads, used nonces, and the row that the readiness check writes.

use sea_orm_migration::prelude::*;

use crate::{
    column::{id, nullable_text, number, table, text},
    idempotent,
};

/// The tables of this module.
pub const TABLES: [&str; 7] =
    ["leader_lease", "region_lock", "region_store", "registry_habits", "stray_upload", "nonce", "write_probe"];

/// Maximum length of a registry's address, in characters.
const SERVICE_LENGTH: u32 = 400;

/// Creates the tables and their indexes.
pub async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let backend = manager.get_database_backend();
    for table in [
        table("leader_lease", &["name"], vec![id(backend, "name"), id(backend, "holder"), number("expires_at")]),
        table("region_lock", &["region_id"], vec![id(backend, "region_id")]),
        table(
            "region_store",
            &["region_id"],
            vec![id(backend, "region_id"), nullable_text("location"), number("seen_at")],
        ),
        table(
            "registry_habits",
            &["service"],
            vec![id(backend, "service").string_len(SERVICE_LENGTH).take(), text("habits"), number("learned_at")],
        ),
        table(
            "stray_upload",
            &["id"],
            vec![id(backend, "id"), id(backend, "region_id"), text("session"), number("attempts"), number("due_at")],
        ),
        table("nonce", &["digest"], vec![id(backend, "digest"), number("expires_at")]),
        table("write_probe", &["name"], vec![id(backend, "name"), number("written_at")]),
    ] {
        idempotent::create_table(manager, table).await?;
    }
    idempotent::create_index(
        manager,
        "nonce",
        "nonce_expires_at",
        "CREATE INDEX nonce_expires_at ON nonce (expires_at)",
    )
    .await
}
