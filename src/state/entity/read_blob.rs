//! The table `read_blob`: blobs that regions had before, were read once, and had their digest.

use sea_orm::entity::prelude::*;

/// One blob.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "read_blob")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    /// Where the region's store has it: a repository, or the prefix of a layout.
    #[sea_orm(primary_key, auto_increment = false)]
    pub location: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub blob: String,
    /// What the store said of it then, which changes when it is written again; nothing where the store has no such mark.
    pub witness: Option<String>,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
