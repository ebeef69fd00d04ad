//! What several processes need on one database: the due replicas of each region in their order, who has been given a duty, and
//! what is locked while a region with a limit is claimed for.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::name;

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
        let db = manager.get_connection();
        let part = if backend == DbBackend::MySql { "" } else { " WHERE due_at IS NOT NULL" };
        db.execute_unprepared(&format!(
            "CREATE INDEX replica_due_in_region ON replica (region_id, due_at, image_id){part}"
        ))
        .await?;
        drop_index(manager, "replica", "replica_due").await?;
        if backend != DbBackend::MySql {
            // One that runs is in the index of those that run, and need not be in another one.
            db.execute_unprepared(
                "CREATE INDEX synchronization_ended ON synchronization (image_id, request_id) WHERE state <> 'RUNNING'",
            )
            .await?;
            drop_index(manager, "synchronization", "synchronization_of_image").await?;
        }
        if backend == DbBackend::Postgres {
            // Those that run, as they are listed: a few among millions.
            db.execute_unprepared(
                "CREATE INDEX synchronization_running_listed ON synchronization (request_id) WHERE state = 'RUNNING'",
            )
            .await?;
            for room in ROOM {
                db.execute_unprepared(room).await?;
            }
        }
        let fed_from = ColumnDef::new(Alias::new("fed_from")).string_len(128).null().take();
        manager.alter_table(Table::alter().table(Alias::new("replica")).add_column(fed_from).take()).await?;
        let duty = Table::create()
            .table(Alias::new("duty"))
            .col(name::column(backend, "name").primary_key())
            .col(name::column(backend, "holder"))
            .col(ColumnDef::new(Alias::new("held_until")).big_integer().not_null())
            .take();
        manager.create_table(name::table(backend, duty)).await?;
        let gate =
            Table::create().table(Alias::new("gate")).col(name::column(backend, "region_id").primary_key()).take();
        manager.create_table(name::table(backend, gate)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["gate", "duty"] {
            manager.drop_table(Table::drop().table(Alias::new(table)).to_owned()).await?;
        }
        manager
            .alter_table(Table::alter().table(Alias::new("replica")).drop_column(Alias::new("fed_from")).take())
            .await?;
        let part = if manager.get_database_backend() == DbBackend::MySql { "" } else { " WHERE due_at IS NOT NULL" };
        let db = manager.get_connection();
        db.execute_unprepared(&format!("CREATE INDEX replica_due ON replica (due_at){part}")).await?;
        if manager.get_database_backend() == DbBackend::Postgres {
            drop_index(manager, "synchronization", "synchronization_running_listed").await?;
        }
        if manager.get_database_backend() != DbBackend::MySql {
            db.execute_unprepared("CREATE INDEX synchronization_of_image ON synchronization (image_id, request_id)")
                .await?;
            drop_index(manager, "synchronization", "synchronization_ended").await?;
        }
        drop_index(manager, "replica", "replica_due_in_region").await
    }
}

async fn drop_index(manager: &SchemaManager<'_>, table: &'static str, name: &'static str) -> Result<(), DbErr> {
    manager.drop_index(Index::drop().name(name).table(Alias::new(table)).to_owned()).await
}
