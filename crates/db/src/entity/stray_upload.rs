//! The table `stray_upload`: uploads that their store failed to abort and that no copy resumes.

use domain::{RegionId, Timestamp};
use sea_orm::entity::prelude::*;

use super::columns::{Number, Text};

/// An upload that is to be aborted.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "stray_upload")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub region_id: Text<Entity, RegionId>,
    /// The session in the store's own format, encrypted.
    pub session: String,
    /// Number of failed attempts to abort it since it was recorded.
    pub attempts: Number<u32>,
    /// Time of the next attempt.
    pub due_at: Number<Timestamp>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
