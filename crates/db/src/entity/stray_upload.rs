//! The table `stray_upload`: uploads that their store failed to abort and that no copy resumes.

use sea_orm::entity::prelude::*;

/// An upload.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "stray_upload")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub region_id: String,
    /// The session in the store's own format, encrypted.
    pub session: String,
    /// Number of failed attempts to abort it since it was recorded.
    pub attempts: i64,
    /// Time of the next attempt, in milliseconds since the Unix epoch.
    pub due_at: i64,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
