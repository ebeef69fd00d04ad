//! The table `nonce`: nonces of signed requests.

use domain::Timestamp;
use sea_orm::entity::prelude::*;

use super::columns::Number;

/// A claimed nonce.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "nonce")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    /// SHA-256 of the access key's id and the nonce, in hexadecimal.
    #[sea_orm(primary_key, auto_increment = false)]
    pub digest: String,
    /// Time at which a request with it expires.
    pub expires_at: Number<Timestamp>,
}

/// No relation is declared.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
