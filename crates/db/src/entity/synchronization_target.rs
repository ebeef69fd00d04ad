//! The table `synchronization_target`: outcomes of the regions of synchronizations. A region that has not ended has no
//! row, and its replica holds the current state. A row does not change when the replica changes later.

use domain::{FaultKind, RegionId, RegionStatus, RegionView, Timestamp, Verification, Warnings};
use sea_orm::entity::prelude::*;

use super::{
    columns::{self, Number},
    fault, progress, warnings, warnings_column,
};

/// A value in a text column of this table.
pub type Text<T> = columns::Text<Entity, T>;

/// The outcome of a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "synchronization_target")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<RegionId>,
    pub status: Text<RegionStatus>,
    pub attempt: Number<u32>,
    pub bytes_total: Number<u64>,
    pub bytes_copied: Number<u64>,
    pub bytes_skipped: Number<u64>,
    pub fault_kind: Option<Text<FaultKind>>,
    pub fault_message: Option<String>,
    pub started_at: Option<Number<Timestamp>>,
    pub finished_at: Option<Number<Timestamp>>,
    pub verification: Option<Text<Verification>>,
    /// Parts that could not be copied, one per line.
    pub warnings: Option<Text<Warnings>>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// Creates the row of a region that has ended.
    pub fn from_view(request_id: Uuid, view: &RegionView) -> Self {
        let fault = view.fault.as_ref();
        Self {
            request_id,
            region_id: view.region.clone().into(),
            status: view.status.into(),
            attempt: view.attempt.into(),
            bytes_total: view.progress.total.into(),
            bytes_copied: view.progress.copied.into(),
            bytes_skipped: view.progress.skipped.into(),
            fault_kind: fault.map(|f| f.kind.into()),
            fault_message: fault.map(|f| f.message.to_string()),
            started_at: view.started_at.map(Number),
            finished_at: view.finished_at.map(Number),
            verification: view.verification.map(Text::from),
            warnings: warnings_column(&view.warnings),
        }
    }

    /// Returns the outcome as callers see it.
    pub fn view(&self) -> RegionView {
        RegionView {
            region: self.region_id.0.clone(),
            status: self.status.0,
            verification: self.verification.as_ref().map(|verification| verification.0),
            progress: progress(self.bytes_total, self.bytes_copied, self.bytes_skipped),
            attempt: self.attempt.0,
            next_attempt_at: None,
            fault: fault(self.fault_kind.as_ref(), self.fault_message.as_deref()),
            started_at: self.started_at.map(|at| at.0),
            finished_at: self.finished_at.map(|at| at.0),
            warnings: warnings(self.warnings.as_ref()),
        }
    }
}
