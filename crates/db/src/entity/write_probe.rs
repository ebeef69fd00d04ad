//! The table `write_probe`: the row that the readiness check writes.

use domain::Timestamp;
use sea_orm::entity::prelude::*;

use super::columns::Number;

/// A test write.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "write_probe")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub written_at: Number<Timestamp>,
}

/// No relation is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
