//! The table `replica`: state machines of images in regions.

use domain::{Fault, ImageId, Lease, RegionId, RegionStatus, Replica, ReplicaState, Timestamp, Verification, WorkerId};
use sea_orm::entity::prelude::*;

use super::{count, fault, parse, progress, signed, unsigned, warnings, warnings_text};

/// An image in a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "replica")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    pub state: String,
    /// Time from which a worker may claim it, in milliseconds since the Unix epoch: the next attempt while PENDING, the
    /// end of the lease while COPYING, [`SUSPENDED`] while suspended.
    pub due_at: Option<i64>,
    /// Start of the wait of a PENDING replica, in milliseconds since the Unix epoch, if it is not `due_at` itself.
    pub waiting_since: Option<i64>,
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
    /// Source of the running copy.
    pub fed_from: Option<String>,
    /// How the image was verified, while AVAILABLE.
    pub verification: Option<String>,
    /// Parts that could not be copied, one per line.
    pub warnings: Option<String>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// `due_at` of a suspended replica, the end of the year 9999, so that no worker finds it due.
pub const SUSPENDED: i64 = 253_402_300_799_000;

impl Model {
    /// Creates the row of a replica.
    #[must_use]
    pub fn from_replica(image: &ImageId, region: &RegionId, replica: &Replica) -> Self {
        let (due_at, lease_owner) = match &replica.state {
            ReplicaState::Pending { not_before, .. } => (Some(not_before.as_millis()), None),
            ReplicaState::Suspended { .. } => (Some(SUSPENDED), None),
            ReplicaState::Copying { lease, .. } => (Some(lease.until.as_millis()), Some(lease.owner.to_string())),
            ReplicaState::Available(_)
            | ReplicaState::Failed(_)
            | ReplicaState::Canceled
            | ReplicaState::Superseded => (None, None),
        };
        let waiting_since = match &replica.state {
            ReplicaState::Pending { since, not_before, .. } if since != not_before => Some(since.as_millis()),
            _ => None,
        };
        let fault: Option<&Fault> = replica.last_fault();
        Self {
            image_id: image.to_string(),
            region_id: region.to_string(),
            state: replica.status().as_str().to_owned(),
            due_at,
            waiting_since,
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

    /// Parses the replica.
    pub fn replica(&self) -> Result<Replica, DbErr> {
        let status: RegionStatus = parse("replica.state", &self.state)?;
        let last_fault = fault(self.fault_kind.as_deref(), self.fault_message.as_deref())?;
        let missing = |column| DbErr::Type(format!("a replica that is {} has no {column}", self.state));
        let due_at = || self.due_at.map(Timestamp::from_millis).ok_or_else(|| missing("due_at"));
        let state = match status {
            RegionStatus::Pending if self.due_at.is_some_and(|due_at| due_at >= SUSPENDED) => {
                ReplicaState::Suspended { reason: last_fault.ok_or_else(|| missing("fault"))? }
            }
            RegionStatus::Pending => {
                let not_before = due_at()?;
                let since = self.waiting_since.map_or(not_before, Timestamp::from_millis);
                ReplicaState::Pending { since, not_before, last_fault }
            }
            RegionStatus::Copying => {
                let owner = self.lease_owner.as_deref().ok_or_else(|| missing("lease_owner"))?;
                ReplicaState::Copying { lease: Lease { owner: WorkerId(owner.into()), until: due_at()? }, last_fault }
            }
            RegionStatus::Available => ReplicaState::Available(self.verification()?),
            RegionStatus::Failed => ReplicaState::Failed(last_fault.ok_or_else(|| missing("fault"))?),
            RegionStatus::Canceled => ReplicaState::Canceled,
            RegionStatus::Superseded => ReplicaState::Superseded,
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
