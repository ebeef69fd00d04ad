//! The table `read_blob`: blobs that this service did not write, but that matched their digest when they were read.

use domain::{Digest, RegionId};
use sea_orm::entity::prelude::*;

use super::columns::Text;

/// A blob that was read and matches its digest.
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
    /// The store's version mark of the blob when it was read, such as an `ETag`, if the store has one.
    pub witness: Option<String>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
