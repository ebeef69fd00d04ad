//! The table `region_lock`: rows that are locked while the copies into or out of a limited region are counted.

use domain::RegionId;
use sea_orm::entity::prelude::*;

use super::columns::Text;

/// A region's lock.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "region_lock")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<Entity, RegionId>,
}

/// No relation is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
