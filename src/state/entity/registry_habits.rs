//! The table `registry_habits`: how registries take blobs, where that is not as the specification has it.

use sea_orm::entity::prelude::*;

/// One registry.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "registry_habits")]
#[allow(missing_docs)]
pub struct Model {
    /// The registry's address.
    #[sea_orm(primary_key, auto_increment = false)]
    pub service: String,
    /// What was learned, in the form of `region::registry`.
    pub habits: String,
    /// When, in milliseconds.
    pub learned_at: i64,
}

/// None is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
