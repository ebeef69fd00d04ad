//! The table `replica`: state machines of images in regions.

use domain::{
    Fault, FaultKind, ImageId, Lease, RegionId, RegionStatus, Replica, ReplicaState, Timestamp, Verification, Warnings,
    WorkerId,
};
use sea_orm::entity::prelude::*;

use super::{
    columns::{self, Number},
    fault, progress, warnings, warnings_column,
};

/// A value in a text column of this table.
pub type Text<T> = columns::Text<Entity, T>;

/// An image in a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "replica")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: Text<ImageId>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<RegionId>,
    pub state: Text<RegionStatus>,
    /// Time from which a worker may claim the replica, in milliseconds since the Unix epoch: the next attempt while
    /// PENDING, the end of the lease while COPYING, [`SUSPENDED`] while suspended.
    pub due_at: Option<Number<Timestamp>>,
    /// Start of the wait of a PENDING replica, in milliseconds since the Unix epoch, if it differs from `due_at`.
    pub waiting_since: Option<Number<Timestamp>>,
    pub attempt: Number<u32>,
    pub faults: Number<u32>,
    pub fence: Number<u64>,
    pub lease_owner: Option<String>,
    pub suspect: bool,
    pub bytes_total: Number<u64>,
    pub bytes_copied: Number<u64>,
    pub bytes_skipped: Number<u64>,
    pub fault_kind: Option<Text<FaultKind>>,
    pub fault_message: Option<String>,
    pub started_at: Option<Number<Timestamp>>,
    pub finished_at: Option<Number<Timestamp>>,
    /// Source of the running copy.
    pub fed_from: Option<Text<RegionId>>,
    /// How the image was verified, while AVAILABLE.
    pub verification: Option<Text<Verification>>,
    /// Parts that could not be copied, one per line.
    pub warnings: Option<Text<Warnings>>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// `due_at` of a suspended replica, the end of the year 9999, so that no worker finds it due.
pub const SUSPENDED: Number<Timestamp> = Number(Timestamp::from_millis(253_402_300_799_000));

impl Model {
    /// Creates the row of a replica.
    #[must_use]
    pub fn from_replica(image: &ImageId, region: &RegionId, replica: &Replica) -> Self {
        let (due_at, lease_owner) = match &replica.state {
            ReplicaState::Pending { not_before, .. } => (Some(Number(*not_before)), None),
            ReplicaState::Suspended { .. } => (Some(SUSPENDED), None),
            ReplicaState::Copying { lease, .. } => (Some(Number(lease.until)), Some(lease.owner.to_string())),
            ReplicaState::Available(_)
            | ReplicaState::Failed(_)
            | ReplicaState::Canceled
            | ReplicaState::Superseded => (None, None),
        };
        let waiting_since = match &replica.state {
            ReplicaState::Pending { since, not_before, .. } if since != not_before => Some(Number(*since)),
            _ => None,
        };
        let fault: Option<&Fault> = replica.last_fault();
        Self {
            image_id: image.clone().into(),
            region_id: region.clone().into(),
            state: replica.status().into(),
            due_at,
            waiting_since,
            attempt: replica.attempt.into(),
            faults: replica.faults.into(),
            fence: replica.fence.into(),
            lease_owner,
            suspect: replica.suspect,
            bytes_total: replica.progress.total.into(),
            bytes_copied: replica.progress.copied.into(),
            bytes_skipped: replica.progress.skipped.into(),
            fault_kind: fault.map(|f| f.kind.into()),
            fault_message: fault.map(|f| f.message.to_string()),
            started_at: replica.started_at.map(Number),
            finished_at: replica.finished_at.map(Number),
            fed_from: None,
            verification: replica.verification().map(Text::from),
            warnings: warnings_column(&replica.warnings),
        }
    }

    /// Returns the image and the region of the replica.
    pub fn key(&self) -> (ImageId, RegionId) {
        (self.image_id.0.clone(), self.region_id.0.clone())
    }

    /// Converts the row. Returns [`DbErr::Type`] if it lacks a value that its state requires.
    pub fn replica(&self) -> Result<Replica, DbErr> {
        let last_fault = fault(self.fault_kind.as_ref(), self.fault_message.as_deref());
        let missing = |column| DbErr::Type(format!("a replica that is {} has no {column}", self.state.0));
        let due_at = || self.due_at.map(|due_at| due_at.0).ok_or_else(|| missing("due_at"));
        let state = match self.state.0 {
            RegionStatus::Pending if self.due_at.is_some_and(|due_at| due_at.0 >= SUSPENDED.0) => {
                ReplicaState::Suspended { reason: last_fault.ok_or_else(|| missing("fault"))? }
            }
            RegionStatus::Pending => {
                let not_before = due_at()?;
                let since = self.waiting_since.map_or(not_before, |since| since.0);
                ReplicaState::Pending { since, not_before, last_fault }
            }
            RegionStatus::Copying => {
                let owner = self.lease_owner.as_deref().ok_or_else(|| missing("lease_owner"))?;
                ReplicaState::Copying { lease: Lease { owner: WorkerId(owner.into()), until: due_at()? }, last_fault }
            }
            RegionStatus::Available => {
                ReplicaState::Available(self.verification.as_ref().map(|verification| verification.0))
            }
            RegionStatus::Failed => ReplicaState::Failed(last_fault.ok_or_else(|| missing("fault"))?),
            RegionStatus::Canceled => ReplicaState::Canceled,
            RegionStatus::Superseded => ReplicaState::Superseded,
        };
        Ok(Replica {
            state,
            attempt: self.attempt.0,
            faults: self.faults.0,
            fence: self.fence.0,
            suspect: self.suspect,
            progress: progress(self.bytes_total, self.bytes_copied, self.bytes_skipped),
            started_at: self.started_at.map(|at| at.0),
            finished_at: self.finished_at.map(|at| at.0),
            warnings: warnings(self.warnings.as_ref()),
        })
    }
}
