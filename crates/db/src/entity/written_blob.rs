//! The table `written_blob`: blobs that unfinished copies have written, which a later attempt need not verify.

use domain::{Digest, ImageId, RegionId};
use sea_orm::entity::prelude::*;

use super::columns;

/// A value in a text column of this table.
pub type Text<T> = columns::Text<Entity, T>;

/// A blob that a copy has written to a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "written_blob")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: Text<ImageId>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<RegionId>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub blob: Text<Digest>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
