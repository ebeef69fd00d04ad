//! The table `image_reference`: to which image's content a name belongs in all stores that give images names of their own.

use sea_orm::entity::prelude::*;

/// One name.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "image_reference")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub root_digest: String,
    /// An image of that content; others may be registered by the same name and digest.
    pub image_id: String,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
