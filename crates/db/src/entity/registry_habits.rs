//! The table `registry_habits`: how registries accept blobs where they deviate from the specification.

use domain::Timestamp;
use sea_orm::entity::prelude::*;

use super::columns::Number;

/// A registry and its deviations from the specification.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "registry_habits")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    /// The registry's address.
    #[sea_orm(primary_key, auto_increment = false)]
    pub service: String,
    /// The record in the format of `region::registry`.
    pub habits: String,
    pub learned_at: Number<Timestamp>,
}

/// No relation is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
