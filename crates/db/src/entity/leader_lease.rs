//! The table `leader_lease`: the process that is the leader.

use domain::Timestamp;
use sea_orm::entity::prelude::*;

use super::columns::Number;

/// The lease of the leader.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "leader_lease")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// Id of the process that holds the lease.
    pub holder: String,
    /// Expiry. The Unix epoch if the holder has resigned.
    pub expires_at: Number<Timestamp>,
}

/// No relation is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
