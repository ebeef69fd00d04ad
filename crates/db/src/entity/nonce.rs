//! The table `nonce`: nonces of signed requests.

use sea_orm::entity::prelude::*;

/// A claimed nonce.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "nonce")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    /// SHA-256 of the access key's id and the nonce, in hexadecimal.
    #[sea_orm(primary_key, auto_increment = false)]
    pub digest: String,
    /// Time at which a request with it expires, in milliseconds since the Unix epoch.
    pub expires_at: i64,
}

/// No relation is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
