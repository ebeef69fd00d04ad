//! The table `synchronization_target`: the regions of a synchronization. Until a target has ended, its replica's row tells
//! how it stands; then the outcome is written here and stays, whatever becomes of the replica later.

use sea_orm::{ActiveValue::Set, entity::prelude::*};

use super::{count, fault, parse, progress, signed};
use crate::domain::{RegionView, Timestamp};

/// One region of a synchronization.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "synchronization_target")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    /// The terminal state; nothing before it is reached.
    pub status: Option<String>,
    pub attempt: i64,
    pub bytes_total: i64,
    pub bytes_copied: i64,
    pub bytes_skipped: i64,
    pub fault_kind: Option<String>,
    pub fault_message: Option<String>,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// What is written down when a target has ended.
pub fn ended(view: &RegionView) -> ActiveModel {
    let fault = view.fault.as_ref();
    ActiveModel {
        status: Set(Some(view.status.as_str().to_owned())),
        attempt: Set(view.attempt.into()),
        bytes_total: Set(signed(view.progress.total)),
        bytes_copied: Set(signed(view.progress.copied)),
        bytes_skipped: Set(signed(view.progress.skipped)),
        fault_kind: Set(fault.map(|f| f.kind.as_str().to_owned())),
        fault_message: Set(fault.map(|f| f.message.clone())),
        started_at: Set(view.started_at.map(Timestamp::as_millis)),
        finished_at: Set(view.finished_at.map(Timestamp::as_millis)),
        ..Default::default()
    }
}

impl Model {
    /// How the target ended; nothing if it has not.
    pub fn outcome(&self) -> Result<Option<RegionView>, DbErr> {
        let Some(status) = &self.status else { return Ok(None) };
        Ok(Some(RegionView {
            region: parse("synchronization_target.region_id", &self.region_id)?,
            status: parse("synchronization_target.status", status)?,
            progress: progress(self.bytes_total, self.bytes_copied, self.bytes_skipped),
            attempt: count(self.attempt),
            next_attempt_at: None,
            fault: fault(self.fault_kind.as_deref(), self.fault_message.as_deref())?,
            started_at: self.started_at.map(Timestamp::from_millis),
            finished_at: self.finished_at.map(Timestamp::from_millis),
        }))
    }
}
