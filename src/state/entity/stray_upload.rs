//! The table `stray_upload`: uploads that their store did not abort when it was asked, and that are no copy's any more.

use sea_orm::entity::prelude::*;

/// One upload.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "stray_upload")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub region_id: String,
    /// What the store needs to abort it, sealed.
    pub session: String,
    /// How often that was tried since.
    pub tries: i32,
    /// When it is tried next.
    pub due_at: i64,
}

/// None is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
