//! The table `synchronization`: accepted calls.

use sea_orm::entity::prelude::*;

/// One accepted call.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "synchronization")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: Uuid,
    pub image_id: String,
    pub principal: String,
    pub client_token: Option<String>,
    /// The targets as they were asked for, in their canonical form: whether a repeated call has the same parameters.
    pub asked: String,
    /// The regions that it goes to, sorted, with commas between them.
    pub targets: String,
    /// How many of them have not ended.
    pub open: i64,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub state: String,
    pub created_at: i64,
    pub finished_at: Option<i64>,
    /// Whether what others have put in the place of the image may be replaced; nothing for no.
    pub overwrite: Option<i64>,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
