//! The table `replica`: the state machine's rows.

use sea_orm::entity::prelude::*;

use super::{count, fault, parse, progress, signed, unsigned, warnings, warnings_text};
use crate::domain::{Fault, ImageId, Lease, RegionId, RegionStatus, Replica, State, Timestamp, Verification, WorkerId};

/// One image in one region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "replica")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    pub state: String,
    /// When a worker may claim it: the time of the next attempt while PENDING, the end of the lease while COPYING; [`SUSPENDED`].
    pub due_at: Option<i64>,
    pub attempt: i64,
    pub faults: i64,
    pub fence: i64,
    pub lease_owner: Option<String>,
    pub suspect: bool,
    pub bytes_total: i64,
    pub bytes_copied: i64,
    pub bytes_skipped: i64,
    pub fault_kind: Option<String>,
    pub fault_message: Option<String>,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    /// The region that feeds it, while it is fed.
    pub fed_from: Option<String>,
    /// How it is known that the image is there, while AVAILABLE.
    pub verification: Option<String>,
    /// What the image arrived without, a line each.
    pub warnings: Option<String>,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// `due_at` of a replica that is suspended, the end of the year 9999: no worker finds it due, and versions that do not know of
/// suspension take it for one that is tried again then.
pub const SUSPENDED: i64 = 253_402_300_799_000;

impl Model {
    /// The row of a replica.
    #[must_use]
    pub fn of(image: &ImageId, region: &RegionId, replica: &Replica) -> Self {
        let (due_at, lease_owner) = match &replica.state {
            State::Pending { not_before, .. } => (Some(not_before.as_millis()), None),
            State::Suspended { .. } => (Some(SUSPENDED), None),
            State::Copying { lease, .. } => (Some(lease.until.as_millis()), Some(lease.owner.to_string())),
            State::Available(_) | State::Failed(_) | State::Canceled | State::Superseded => (None, None),
        };
        let fault: Option<&Fault> = replica.last_fault();
        Self {
            image_id: image.to_string(),
            region_id: region.to_string(),
            state: replica.status().as_str().to_owned(),
            due_at,
            attempt: replica.attempt.into(),
            faults: replica.faults.into(),
            fence: signed(replica.fence),
            lease_owner,
            suspect: replica.suspect,
            bytes_total: signed(replica.progress.total),
            bytes_copied: signed(replica.progress.copied),
            bytes_skipped: signed(replica.progress.skipped),
            fault_kind: fault.map(|f| f.kind.as_str().to_owned()),
            fault_message: fault.map(|f| f.message.to_string()),
            started_at: replica.started_at.map(Timestamp::as_millis),
            finished_at: replica.finished_at.map(Timestamp::as_millis),
            fed_from: None,
            verification: replica.verification().map(|verification| verification.as_str().to_owned()),
            warnings: warnings_text(&replica.warnings),
        }
    }

    fn verification(&self) -> Result<Option<Verification>, DbErr> {
        self.verification.as_deref().map(|text| parse("replica.verification", text)).transpose()
    }

    /// The replica that the row holds.
    pub fn replica(&self) -> Result<Replica, DbErr> {
        let status: RegionStatus = parse("replica.state", &self.state)?;
        let last = fault(self.fault_kind.as_deref(), self.fault_message.as_deref())?;
        let missing = |column| DbErr::Type(format!("a replica that is {} has no {column}", self.state));
        let due_at = || self.due_at.map(Timestamp::from_millis).ok_or_else(|| missing("due_at"));
        let state = match status {
            RegionStatus::Pending if self.due_at.is_some_and(|due_at| due_at >= SUSPENDED) => {
                State::Suspended { reason: last.ok_or_else(|| missing("fault"))? }
            }
            RegionStatus::Pending => State::Pending { not_before: due_at()?, last },
            RegionStatus::Copying => {
                let owner = self.lease_owner.as_deref().ok_or_else(|| missing("lease_owner"))?;
                State::Copying { lease: Lease { owner: WorkerId(owner.into()), until: due_at()? }, last }
            }
            RegionStatus::Available => State::Available(self.verification()?),
            RegionStatus::Failed => State::Failed(last.ok_or_else(|| missing("fault"))?),
            RegionStatus::Canceled => State::Canceled,
            RegionStatus::Superseded => State::Superseded,
        };
        Ok(Replica {
            state,
            attempt: count(self.attempt),
            faults: count(self.faults),
            fence: unsigned(self.fence),
            suspect: self.suspect,
            progress: progress(self.bytes_total, self.bytes_copied, self.bytes_skipped),
            started_at: self.started_at.map(Timestamp::from_millis),
            finished_at: self.finished_at.map(Timestamp::from_millis),
            warnings: warnings(self.warnings.as_deref())?,
        })
    }
}
