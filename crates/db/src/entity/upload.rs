//! The table `upload`: unfinished uploads of blobs.

use sea_orm::entity::prelude::*;

/// An upload.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "upload")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub blob: String,
    /// Encrypted session in the format of the store, with which it resumes the upload.
    pub session: String,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
