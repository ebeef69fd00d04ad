//! The table `synchronization`: accepted calls.

use domain::{ImageId, SynchronizationState, Timestamp};
use sea_orm::entity::prelude::*;

use super::columns::{self, Number, RegionList};

/// A value in a text column of this table.
pub type Text<T> = columns::Text<Entity, T>;

/// An accepted call.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "synchronization")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: Uuid,
    pub image_id: Text<ImageId>,
    pub principal: String,
    pub client_token: Option<String>,
    /// Canonical form of the call's targets and options, compared with those of a repeated call.
    pub parameters: String,
    /// Destination regions, sorted and separated by commas.
    pub targets: Text<RegionList>,
    /// Number of regions that have not ended.
    pub open: i64,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub state: Text<SynchronizationState>,
    pub created_at: Number<Timestamp>,
    pub finished_at: Option<Number<Timestamp>>,
    /// 1 if content that another program wrote under the image's name may be replaced; otherwise NULL.
    pub overwrite: Option<i64>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
