//! The table `nonce`: signed requests that have been made.

use sea_orm::entity::prelude::*;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "nonce")]
#[allow(missing_docs)]
pub struct Model {
    /// Of the access key's id and the nonce.
    #[sea_orm(primary_key, auto_increment = false)]
    pub digest: String,
    /// When a request with it is too old anyway.
    pub expires_at: i64,
}

/// None is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
