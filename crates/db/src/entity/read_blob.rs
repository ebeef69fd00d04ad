//! The table `read_blob`: blobs that this service did not write, but read once and found to have their digest.

use domain::{Digest, RegionId};
use sea_orm::entity::prelude::*;

use super::columns::Text;

/// A blob.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "read_blob")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<Entity, RegionId>,
    /// A repository or the prefix of a layout.
    #[sea_orm(primary_key, auto_increment = false)]
    pub location: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub blob: Text<Entity, Digest>,
    /// The store's version mark at that time, such as an `ETag`, if it has one.
    pub witness: Option<String>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
