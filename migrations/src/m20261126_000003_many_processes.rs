//! What several processes need on one database: the due replicas of each region in their order, who has been given a duty, and
//! what is locked while a region with a limit is claimed for.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// Rows of `replica` are changed several times in their life: with room on their page, a change does not have to look for another,
/// and what is left behind is cleared away before an index grows with it.
const ROOM: [&str; 2] = [
    "ALTER TABLE replica SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0)",
    "ALTER TABLE synchronization SET (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05)",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let part = if backend == DbBackend::MySql { "" } else { " WHERE due_at IS NOT NULL" };
        let due = format!("CREATE INDEX replica_due_in_region ON replica (region_id, due_at, image_id){part}");
        idempotent::create_index(manager, "replica", "replica_due_in_region", due).await?;
        idempotent::drop_index(manager, "replica", "replica_due").await?;
        if backend != DbBackend::MySql {
            // One that runs is in the index of those that run, and need not be in another one.
            let ended =
                "CREATE INDEX synchronization_ended ON synchronization (image_id, request_id) WHERE state <> 'RUNNING'";
            idempotent::create_index(manager, "synchronization", "synchronization_ended", ended).await?;
            idempotent::drop_index(manager, "synchronization", "synchronization_of_image").await?;
        }
        if backend == DbBackend::Postgres {
            // Those that run, as they are listed: a few among millions.
            let running =
                "CREATE INDEX synchronization_running_listed ON synchronization (request_id) WHERE state = 'RUNNING'";
            idempotent::create_index(manager, "synchronization", "synchronization_running_listed", running).await?;
            for room in ROOM {
                idempotent::execute(manager, room).await?;
            }
        }
        let fed_from = ColumnDef::new(Alias::new("fed_from")).string_len(128).null().take();
        idempotent::add_column(manager, "replica", fed_from).await?;
        let duty = Table::create()
            .table(Alias::new("duty"))
            .col(name::column(backend, "name").primary_key())
            .col(name::column(backend, "holder"))
            .col(ColumnDef::new(Alias::new("held_until")).big_integer().not_null())
            .take();
        idempotent::create_table(manager, name::table(backend, duty)).await?;
        let gate =
            Table::create().table(Alias::new("gate")).col(name::column(backend, "region_id").primary_key()).take();
        idempotent::create_table(manager, name::table(backend, gate)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["gate", "duty"] {
            idempotent::drop_table(manager, table).await?;
        }
        idempotent::drop_column(manager, "replica", "fed_from").await?;
        let part = if manager.get_database_backend() == DbBackend::MySql { "" } else { " WHERE due_at IS NOT NULL" };
        let due = format!("CREATE INDEX replica_due ON replica (due_at){part}");
        idempotent::create_index(manager, "replica", "replica_due", due).await?;
        if manager.get_database_backend() == DbBackend::Postgres {
            idempotent::drop_index(manager, "synchronization", "synchronization_running_listed").await?;
        }
        if manager.get_database_backend() != DbBackend::MySql {
            let of_image = "CREATE INDEX synchronization_of_image ON synchronization (image_id, request_id)";
            idempotent::create_index(manager, "synchronization", "synchronization_of_image", of_image).await?;
            idempotent::drop_index(manager, "synchronization", "synchronization_ended").await?;
        }
        idempotent::drop_index(manager, "replica", "replica_due_in_region").await
    }
}
