//! The table `region_store`: regions that are or were configured.

use domain::{RegionId, Timestamp};
use sea_orm::entity::prelude::*;

use super::columns::{Number, Text};

/// A region and its store.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "region_store")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<Entity, RegionId>,
    /// Location of the store whose images were last confirmed.
    pub location: Option<String>,
    /// Time at which a process last had the region configured.
    pub seen_at: Number<Timestamp>,
}

/// No relation is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
