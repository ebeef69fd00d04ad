//! The table `synchronization_target`: outcomes of the regions of synchronizations. A region that has not ended has no
//! row, and its replica holds the current state. A row never changes, whatever happens to the replica later.

use domain::{RegionView, Timestamp};
use sea_orm::entity::prelude::*;

use super::{count, fault, parse, progress, signed, warnings, warnings_text};

/// The outcome of a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "synchronization_target")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    pub status: String,
    pub attempt: i64,
    pub bytes_total: i64,
    pub bytes_copied: i64,
    pub bytes_skipped: i64,
    pub fault_kind: Option<String>,
    pub fault_message: Option<String>,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub verification: Option<String>,
    /// Parts that could not be copied, one per line.
    pub warnings: Option<String>,
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
            region_id: view.region.to_string(),
            status: view.status.as_str().to_owned(),
            attempt: view.attempt.into(),
            bytes_total: signed(view.progress.total),
            bytes_copied: signed(view.progress.copied),
            bytes_skipped: signed(view.progress.skipped),
            fault_kind: fault.map(|f| f.kind.as_str().to_owned()),
            fault_message: fault.map(|f| f.message.to_string()),
            started_at: view.started_at.map(Timestamp::as_millis),
            finished_at: view.finished_at.map(Timestamp::as_millis),
            verification: view.verification.map(|verification| verification.as_str().to_owned()),
            warnings: warnings_text(&view.warnings),
        }
    }

    /// Parses the outcome.
    pub fn view(&self) -> Result<RegionView, DbErr> {
        Ok(RegionView {
            region: parse("synchronization_target.region_id", &self.region_id)?,
            status: parse("synchronization_target.status", &self.status)?,
            verification: self
                .verification
                .as_deref()
                .map(|text| parse("synchronization_target.verification", text))
                .transpose()?,
            progress: progress(self.bytes_total, self.bytes_copied, self.bytes_skipped),
            attempt: count(self.attempt),
            next_attempt_at: None,
            fault: fault(self.fault_kind.as_deref(), self.fault_message.as_deref())?,
            started_at: self.started_at.map(Timestamp::from_millis),
            finished_at: self.finished_at.map(Timestamp::from_millis),
            warnings: warnings(self.warnings.as_deref())?,
        })
    }
}
