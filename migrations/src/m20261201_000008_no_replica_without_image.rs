//! Replicas do not outlive their image. Those that an earlier version left behind when an image was removed while a call for it was
//! accepted are deleted; what became of the calls stays in `synchronization_target`. One that is still to be copied is left to its
//! worker, who ends the calls that wait for it.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

const DELETE: &str = "DELETE FROM replica WHERE due_at IS NULL \
                      AND NOT EXISTS (SELECT 1 FROM image WHERE image.id = replica.image_id)";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DELETE).await.map(drop)
    }

    /// What was deleted said nothing that was true.
    async fn down(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Ok(())
    }
}
