//! The table `image_reference`: the content that each name belongs to, in all stores that have names for images.

use domain::{Digest, ImageId};
use sea_orm::entity::prelude::*;

use super::columns::Text;

/// A name and its content.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "image_reference")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub root_digest: Text<Entity, Digest>,
    /// One of the images with this name and digest.
    pub image_id: Text<Entity, ImageId>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
