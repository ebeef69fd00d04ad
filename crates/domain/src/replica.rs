//! The state machine of an image in a region.
//!
//! ```text
//! PENDING --claim--> COPYING --verified--> AVAILABLE
//!    ^                 |  \--permanent fault, or attempts used up--> FAILED
//!    |--fault, later---/  \--cancel--> CANCELED      (PENDING --cancel--> CANCELED)
//! COPYING with an expired lease is claimed again, with a higher fence, or becomes PENDING while no worker claims it
//! PENDING, or COPYING with an expired lease --not configured--> suspended --configured again--> PENDING
//! AVAILABLE --found damaged--> FAILED, which the next request restarts
//! AVAILABLE --name taken over--> SUPERSEDED, which no request restarts
//! AVAILABLE --read again and intact--> AVAILABLE and verified
//! ```
//!
//! Every write of a worker carries the fence of its claim. A claim, an expiry, a cancellation and a new request raise
//! the fence, so a worker that was overtaken can change nothing. The fence of a new replica is the time of its request
//! instead of zero: an image that was removed and added again has new replicas, and a worker that still copies the old
//! image must not hold one of their fences.

use std::time::Duration;

use super::{Fault, RegionStatus, Timestamp, Verification, Warnings};

mod event;
mod state;
#[cfg(test)]
mod tests;

pub use event::Event;
pub use state::{Lease, Outcome, Progress, ReplicaState, WorkerId};

/// Maximum factor between the lease durations of different workers.
const MAX_LEASE_FACTOR: u32 = 4;

/// An image in a region.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Replica {
    /// Current state.
    pub state: ReplicaState,
    /// Number of attempts since the last request.
    pub attempt: u32,
    /// Number of these attempts that failed.
    pub faults: u32,
    /// Fence, which is raised whenever earlier writers must stop writing.
    pub fence: u64,
    /// Whether a part was found damaged and has not been repaired. If so, no existing part is trusted.
    pub suspect: bool,
    /// Progress of the last attempt.
    pub progress: Progress,
    /// Start of the first attempt.
    pub started_at: Option<Timestamp>,
    /// Time at which the replica reached a terminal state.
    pub finished_at: Option<Timestamp>,
    /// Parts that could not be copied.
    pub warnings: Warnings,
}

/// Error for an event that the replica rejects in its current state, because the sender of the event was overtaken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the replica has moved on")]
pub struct Stale;

impl Replica {
    /// Creates a replica that is requested for the first time.
    #[must_use]
    pub fn requested(now: Timestamp) -> Self {
        Self {
            state: ReplicaState::due(now, None),
            attempt: 0,
            faults: 0,
            fence: now.as_millis().unsigned_abs(),
            suspect: false,
            progress: Progress::default(),
            started_at: None,
            finished_at: None,
            warnings: Warnings::default(),
        }
    }

    /// Applies an event. Returns [`Stale`] if the event is not possible in the current state.
    pub fn apply(&self, event: Event, now: Timestamp) -> Result<Self, Stale> {
        match event {
            Event::Request => self.request(now),
            Event::Claim { owner, lease } => self.claim(Lease { owner, until: now.after(lease) }, now),
            Event::Renew { fence, .. }
            | Event::Verified { fence, .. }
            | Event::Faulted { fence, .. }
            | Event::Release { fence } => {
                let ReplicaState::Copying { lease, last_fault } = &self.state else { return Err(Stale) };
                if fence == self.fence { self.report(event, lease, last_fault.as_ref(), now) } else { Err(Stale) }
            }
            Event::Expire | Event::Suspend { .. } | Event::Resume | Event::ClockSetBack { .. } => {
                self.maintain(event, now)
            }
            Event::Cancel if self.outcome().is_none() => {
                Ok(Self { fence: self.fence + 1, ..self.ended(ReplicaState::Canceled, now) })
            }
            Event::Damaged { .. } | Event::Confirmed | Event::Supersede
                if matches!(self.state, ReplicaState::Available(_)) =>
            {
                Ok(self.inspect(event, now))
            }
            Event::Cancel | Event::Damaged { .. } | Event::Confirmed | Event::Supersede => Err(Stale),
        }
    }

    fn request(&self, now: Timestamp) -> Result<Self, Stale> {
        match &self.state {
            ReplicaState::Pending { .. } | ReplicaState::Suspended { .. } | ReplicaState::Copying { .. } => {
                Ok(self.clone())
            }
            ReplicaState::Failed(_) | ReplicaState::Canceled => {
                let restarted = Self::requested(now);
                Ok(Self { fence: restarted.fence.max(self.fence + 1), suspect: self.suspect, ..restarted })
            }
            ReplicaState::Available(_) | ReplicaState::Superseded => Err(Stale),
        }
    }

    fn claim(&self, lease: Lease, now: Timestamp) -> Result<Self, Stale> {
        if !self.claimable(now) {
            return Err(Stale);
        }
        Ok(Self {
            state: ReplicaState::Copying { lease, last_fault: self.last_fault().cloned() },
            attempt: self.attempt + 1,
            fence: self.fence + 1,
            progress: Progress::default(),
            started_at: self.started_at.or(Some(now)),
            ..self.clone()
        })
    }

    /// Applies an event of the worker that holds the lease.
    fn report(&self, event: Event, lease: &Lease, last_fault: Option<&Fault>, now: Timestamp) -> Result<Self, Stale> {
        let last_fault = last_fault.cloned();
        match event {
            Event::Renew { lease: duration, progress, .. } => {
                let lease = Lease { owner: lease.owner.clone(), until: now.after(duration) };
                Ok(Self { state: ReplicaState::Copying { lease, last_fault }, progress, ..self.clone() })
            }
            Event::Verified { progress, verification, warnings, .. } => {
                let state = ReplicaState::Available(Some(verification));
                Ok(Self { progress, suspect: false, warnings, ..self.ended(state, now) })
            }
            Event::Faulted { fault, retry_after, progress, .. } => {
                let next = match retry_after {
                    Some(wait) => {
                        let not_before = now.after(wait);
                        let state = ReplicaState::Pending { since: now, not_before, last_fault: Some(fault) };
                        Self { state, ..self.clone() }
                    }
                    None => self.ended(ReplicaState::Failed(fault), now),
                };
                Ok(Self { faults: self.faults + 1, progress, ..next })
            }
            Event::Release { .. } => Ok(Self {
                state: ReplicaState::due(now, last_fault),
                attempt: self.attempt.saturating_sub(1),
                ..self.clone()
            }),
            _ => Err(Stale),
        }
    }

    /// Applies an event of the leader's maintenance.
    fn maintain(&self, event: Event, now: Timestamp) -> Result<Self, Stale> {
        match (event, &self.state) {
            (Event::Expire, ReplicaState::Copying { lease, last_fault }) if lease.until <= now => {
                Ok(Self { state: ReplicaState::due(now, last_fault.clone()), fence: self.fence + 1, ..self.clone() })
            }
            (Event::Suspend { reason }, ReplicaState::Pending { .. }) => {
                Ok(Self { state: ReplicaState::Suspended { reason }, ..self.clone() })
            }
            (Event::Suspend { reason }, ReplicaState::Copying { lease, .. }) if lease.until <= now => {
                Ok(Self { state: ReplicaState::Suspended { reason }, fence: self.fence + 1, ..self.clone() })
            }
            (Event::Resume, ReplicaState::Suspended { .. }) => {
                Ok(Self { state: ReplicaState::due(now, None), ..self.clone() })
            }
            (Event::ClockSetBack { lease }, _) => self.restart_wait(lease, now).ok_or(Stale),
            _ => Err(Stale),
        }
    }

    /// Applies an event of an available replica.
    fn inspect(&self, event: Event, now: Timestamp) -> Self {
        match event {
            Event::Damaged { fault } => {
                let failed = self.ended(ReplicaState::Failed(fault), now);
                Self { suspect: true, warnings: Warnings::default(), ..failed }
            }
            Event::Supersede => Self { warnings: Warnings::default(), ..self.ended(ReplicaState::Superseded, now) },
            _ => Self { state: ReplicaState::Available(Some(Verification::Verified)), ..self.clone() },
        }
    }

    /// Restarts a wait that began in the future, because the clock was set back since, and shortens a lease that ends
    /// later than any valid lease. Returns `None` for any other wait or lease. Workers may have leases of different
    /// durations, so leases of up to `MAX_LEASE_FACTOR` times the duration are left unchanged.
    fn restart_wait(&self, lease: Duration, now: Timestamp) -> Option<Self> {
        let state = match &self.state {
            ReplicaState::Pending { since, not_before, last_fault } if *since > now => ReplicaState::Pending {
                since: now,
                not_before: now.after(not_before.since(*since)),
                last_fault: last_fault.clone(),
            },
            ReplicaState::Copying { lease: current, last_fault }
                if current.until > now.after(lease * MAX_LEASE_FACTOR) =>
            {
                let lease = Lease { until: now.after(lease), ..current.clone() };
                ReplicaState::Copying { lease, last_fault: last_fault.clone() }
            }
            _ => return None,
        };
        Some(Self { state, ..self.clone() })
    }

    /// Whether a worker can claim the replica: it is pending and due, or its lease has expired.
    #[must_use]
    pub fn claimable(&self, now: Timestamp) -> bool {
        match &self.state {
            ReplicaState::Pending { not_before, .. } => *not_before <= now,
            ReplicaState::Copying { lease, .. } => lease.until <= now,
            _ => false,
        }
    }

    /// Whether the replica waits for its region to be configured.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        matches!(self.state, ReplicaState::Suspended { .. })
    }

    /// Returns the terminal state; `None` while the replica is pending or being copied.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.state {
            ReplicaState::Pending { .. } | ReplicaState::Suspended { .. } | ReplicaState::Copying { .. } => None,
            ReplicaState::Available(_) => Some(Outcome::Available),
            ReplicaState::Failed(fault) => Some(Outcome::Failed(fault.clone())),
            ReplicaState::Canceled => Some(Outcome::Canceled),
            ReplicaState::Superseded => Some(Outcome::Superseded),
        }
    }

    /// Returns the state as callers see it.
    #[must_use]
    pub fn status(&self) -> RegionStatus {
        match &self.state {
            ReplicaState::Pending { .. } | ReplicaState::Suspended { .. } => RegionStatus::Pending,
            ReplicaState::Copying { .. } => RegionStatus::Copying,
            ReplicaState::Available(_) => RegionStatus::Available,
            ReplicaState::Failed(_) => RegionStatus::Failed,
            ReplicaState::Canceled => RegionStatus::Canceled,
            ReplicaState::Superseded => RegionStatus::Superseded,
        }
    }

    /// Returns how the image was verified; `None` if it is not available or the verification was not recorded.
    #[must_use]
    pub fn verification(&self) -> Option<Verification> {
        if let ReplicaState::Available(verification) = &self.state { *verification } else { None }
    }

    /// Returns the final fault, or the fault of the last attempt.
    #[must_use]
    pub fn last_fault(&self) -> Option<&Fault> {
        match &self.state {
            ReplicaState::Pending { last_fault, .. } | ReplicaState::Copying { last_fault, .. } => last_fault.as_ref(),
            ReplicaState::Suspended { reason: fault } | ReplicaState::Failed(fault) => Some(fault),
            ReplicaState::Available(_) | ReplicaState::Canceled | ReplicaState::Superseded => None,
        }
    }

    fn ended(&self, state: ReplicaState, now: Timestamp) -> Self {
        Self { state, finished_at: Some(now), ..self.clone() }
    }
}
