//! The table `region_store`: the regions that are or were configured, each with its store.

use sea_orm::entity::prelude::*;

/// One region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "region_store")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    /// The store whose images have last been known to be there.
    pub location: Option<String>,
    /// When a process last had the region configured, in milliseconds.
    pub seen_at: i64,
}

/// None is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
