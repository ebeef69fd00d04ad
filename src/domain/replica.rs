//! The state machine of one image in one region.
//!
//! ```text
//! PENDING --claim--> COPYING --verified--> AVAILABLE
//!    ^                 |  \--permanent fault, or faults used up--> FAILED
//!    |--fault, later---/  \--cancel--> CANCELED      (PENDING --cancel--> CANCELED)
//! COPYING whose lease ran out is claimed again, with a higher fence, or becomes PENDING while nobody claims it
//! PENDING, or COPYING whose lease ran out --region no longer configured--> suspended --region configured again--> PENDING
//! AVAILABLE --found damaged--> FAILED, which the next request starts afresh
//! AVAILABLE --name taken over--> SUPERSEDED, which no request starts again
//! AVAILABLE --read again, and whole--> AVAILABLE, and verified
//! ```
//!
//! Every write of a worker carries the fence that its claim was given. A claim, a rescue, a cancellation and a new request raise
//! it, so that whoever was overtaken can change nothing. It begins with the time of the request, not at zero: an image that was
//! removed and added again has new replicas, and a worker that still copies the old one must not hold a fence of theirs.

use std::{fmt, sync::Arc, time::Duration};

use super::{Fault, RegionStatus, Timestamp, Verification, Warnings};

/// How many times longer the leases of one worker may be than those of another.
const LEASES_DIFFER: u32 = 4;

/// Who holds a lease: one running process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkerId(pub Arc<str>);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The right of one worker to copy, until it runs out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Who holds it.
    pub owner: WorkerId,
    /// When it runs out, unless it is renewed.
    pub until: Timestamp,
}

/// How far an attempt has come, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// The size of the image.
    pub total: u64,
    /// Moved by this attempt.
    pub copied: u64,
    /// Not moved, because the region had them.
    pub skipped: u64,
}

/// Where a replica stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// It waits for a worker.
    Pending {
        /// Not claimed before.
        not_before: Timestamp,
        /// Why the attempt before failed.
        last: Option<Fault>,
    },
    /// No process has its region configured: it waits for that, and is due for no worker. Callers see it as PENDING.
    Suspended {
        /// Why.
        reason: Fault,
    },
    /// A worker copies it.
    Copying {
        /// That worker's lease.
        lease: Lease,
        /// Why the attempt before failed.
        last: Option<Fault>,
    },
    /// It is there, whole. How that is known; nothing if a version made it available that did not record it.
    Available(Option<Verification>),
    /// It failed for good.
    Failed(Fault),
    /// It was canceled.
    Canceled,
    /// It was there, and another image has taken its name over since.
    Superseded,
}

/// One image in one region.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Replica {
    /// Where it stands.
    pub state: State,
    /// How often a copy was started since it was last requested.
    pub attempt: u32,
    /// How many of these attempts ended with a fault.
    pub faults: u32,
    /// Raised whenever whoever wrote before must not write any more.
    pub fence: u64,
    /// Whether something of it was found damaged and has not been made good yet: then nothing that is there is believed.
    pub suspect: bool,
    /// How far the last attempt has come.
    pub progress: Progress,
    /// When the first attempt started.
    pub started_at: Option<Timestamp>,
    /// When it reached a terminal state.
    pub finished_at: Option<Timestamp>,
    /// What it arrived without.
    pub warnings: Warnings,
}

/// What can happen to a replica.
#[derive(Debug, Clone)]
pub enum Event {
    /// A call asks for it.
    Request,
    /// A worker takes it.
    Claim {
        /// The worker.
        owner: WorkerId,
        /// How long its lease lasts.
        lease: Duration,
    },
    /// Its worker is alive, and has come so far.
    Renew {
        /// The fence of its claim.
        fence: u64,
        /// How long the lease lasts from now.
        lease: Duration,
        /// How far it has come.
        progress: Progress,
    },
    /// Its worker has verified the whole image in the region.
    Verified {
        /// The fence of its claim.
        fence: u64,
        /// What was moved and what was there.
        progress: Progress,
        /// How it is known that all of it is there.
        verification: Verification,
        /// What could not be carried with it.
        warnings: Warnings,
    },
    /// Its worker met a fault.
    Faulted {
        /// The fence of its claim.
        fence: u64,
        /// The fault.
        fault: Fault,
        /// How long to wait before another attempt; nothing if there is to be none.
        retry_after: Option<Duration>,
        /// How far it had come.
        progress: Progress,
    },
    /// Its worker hands it back untried, because it is shutting down or wants to try it alone.
    Release {
        /// The fence of its claim.
        fence: u64,
    },
    /// Its worker has not been heard of for the length of its lease, and nobody else has taken it.
    Expire,
    /// No process has its region configured any more.
    Suspend {
        /// What callers are shown.
        reason: Fault,
    },
    /// Its region is configured again.
    Resume,
    /// The clock was set back: what it waits for lies further ahead than any wait is long.
    ClockSetBack {
        /// How long leases last.
        lease: Duration,
        /// The longest wait before an attempt is repeated.
        longest_wait: Duration,
    },
    /// Somebody read it again, and it is not what it should be.
    Damaged {
        /// What was found.
        fault: Fault,
    },
    /// All of it was read again and has its digests.
    Confirmed,
    /// Another image takes its name in the region over.
    Supersede,
    /// Nobody wants it any more.
    Cancel,
}

/// The event can't happen to the replica as it stands: whoever sent it was overtaken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the replica has moved on")]
pub struct Stale;

/// How a replica ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is there.
    Available,
    /// It failed.
    Failed(Fault),
    /// It was canceled.
    Canceled,
    /// It was there until its name was taken over.
    Superseded,
}

impl Replica {
    /// A replica that has just been asked for.
    #[must_use]
    pub fn requested(now: Timestamp) -> Self {
        Self {
            state: State::Pending { not_before: now, last: None },
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

    /// A replica that has just been asked for, after one that ended with `fence`.
    #[must_use]
    pub fn requested_again(fence: u64, now: Timestamp) -> Self {
        let anew = Self::requested(now);
        Self { fence: anew.fence.max(fence + 1), ..anew }
    }

    /// What becomes of the replica. Returns [`Stale`] and changes nothing where the event has no place.
    pub fn apply(&self, event: Event, now: Timestamp) -> Result<Self, Stale> {
        match (event, &self.state) {
            (Event::Request, State::Pending { .. } | State::Suspended { .. } | State::Copying { .. }) => {
                Ok(self.clone())
            }
            (Event::Request, State::Failed(_) | State::Canceled) => {
                Ok(Self { suspect: self.suspect, ..Self::requested_again(self.fence, now) })
            }
            (Event::Claim { owner, lease }, _) if self.claimable(now) => Ok(Self {
                state: State::Copying {
                    lease: Lease { owner, until: now.after(lease) },
                    last: self.last_fault().cloned(),
                },
                attempt: self.attempt + 1,
                fence: self.fence + 1,
                progress: Progress::default(),
                started_at: self.started_at.or(Some(now)),
                ..self.clone()
            }),
            (Event::Renew { fence, lease, progress }, State::Copying { lease: held, last }) if fence == self.fence => {
                let lease = Lease { owner: held.owner.clone(), until: now.after(lease) };
                Ok(Self { state: State::Copying { lease, last: last.clone() }, progress, ..self.clone() })
            }
            (Event::Verified { fence, progress, verification, warnings }, State::Copying { .. })
                if fence == self.fence =>
            {
                let state = State::Available(Some(verification));
                Ok(Self { progress, suspect: false, warnings, ..self.ended(state, now) })
            }
            (Event::Faulted { fence, fault, retry_after, progress }, State::Copying { .. }) if fence == self.fence => {
                let faults = self.faults + 1;
                let next = match retry_after {
                    Some(wait) => {
                        let state = State::Pending { not_before: now.after(wait), last: Some(fault) };
                        Self { state, ..self.clone() }
                    }
                    None => self.ended(State::Failed(fault), now),
                };
                Ok(Self { faults, progress, ..next })
            }
            (Event::Release { fence }, State::Copying { last, .. }) if fence == self.fence => Ok(Self {
                state: State::Pending { not_before: now, last: last.clone() },
                attempt: self.attempt.saturating_sub(1),
                ..self.clone()
            }),
            (Event::Expire, State::Copying { lease, last }) if lease.until <= now => Ok(Self {
                state: State::Pending { not_before: now, last: last.clone() },
                fence: self.fence + 1,
                ..self.clone()
            }),
            (Event::Suspend { reason }, State::Pending { .. }) => {
                Ok(Self { state: State::Suspended { reason }, ..self.clone() })
            }
            (Event::Suspend { reason }, State::Copying { lease, .. }) if lease.until <= now => {
                Ok(Self { state: State::Suspended { reason }, fence: self.fence + 1, ..self.clone() })
            }
            (Event::Resume, State::Suspended { .. }) => {
                Ok(Self { state: State::Pending { not_before: now, last: None }, ..self.clone() })
            }
            (Event::ClockSetBack { lease, longest_wait }, _) => self.set_back(lease, longest_wait, now).ok_or(Stale),
            (Event::Damaged { fault }, State::Available(_)) => {
                Ok(Self { suspect: true, warnings: Warnings::default(), ..self.ended(State::Failed(fault), now) })
            }
            (Event::Confirmed, State::Available(_)) => {
                Ok(Self { state: State::Available(Some(Verification::Verified)), ..self.clone() })
            }
            (Event::Supersede, State::Available(_)) => {
                Ok(Self { warnings: Warnings::default(), ..self.ended(State::Superseded, now) })
            }
            (Event::Cancel, State::Pending { .. } | State::Suspended { .. } | State::Copying { .. }) => {
                Ok(Self { fence: self.fence + 1, ..self.ended(State::Canceled, now) })
            }
            _ => Err(Stale),
        }
    }

    /// The replica, if it waits for longer than it can have been told to: after a lease at most it is claimable. Other workers may have
    /// leases of another length: what is less than some times as long as this one is left alone.
    fn set_back(&self, lease: Duration, longest_wait: Duration, now: Timestamp) -> Option<Self> {
        let soon = now.after(lease);
        let state = match &self.state {
            State::Pending { not_before, last: None } if *not_before > soon => {
                State::Pending { not_before: now, last: None }
            }
            State::Pending { not_before, last } if *not_before > now.after(longest_wait.max(lease)) => {
                State::Pending { not_before: soon, last: last.clone() }
            }
            State::Copying { lease: held, last } if held.until > now.after(lease * LEASES_DIFFER) => {
                State::Copying { lease: Lease { until: soon, ..held.clone() }, last: last.clone() }
            }
            _ => return None,
        };
        Some(Self { state, ..self.clone() })
    }

    /// Whether a worker may take it: it waits and is due, or its worker has not been heard of for the length of its lease.
    #[must_use]
    pub fn claimable(&self, now: Timestamp) -> bool {
        match &self.state {
            State::Pending { not_before, .. } => *not_before <= now,
            State::Copying { lease, .. } => lease.until <= now,
            State::Suspended { .. } | State::Available(_) | State::Failed(_) | State::Canceled | State::Superseded => {
                false
            }
        }
    }

    /// Whether it waits for its region to be configured again.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        matches!(self.state, State::Suspended { .. })
    }

    /// How it ended; nothing while it has not.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.state {
            State::Pending { .. } | State::Suspended { .. } | State::Copying { .. } => None,
            State::Available(_) => Some(Outcome::Available),
            State::Failed(fault) => Some(Outcome::Failed(fault.clone())),
            State::Canceled => Some(Outcome::Canceled),
            State::Superseded => Some(Outcome::Superseded),
        }
    }

    /// Its state as callers see it.
    #[must_use]
    pub fn status(&self) -> RegionStatus {
        match &self.state {
            State::Pending { .. } | State::Suspended { .. } => RegionStatus::Pending,
            State::Copying { .. } => RegionStatus::Copying,
            State::Available(_) => RegionStatus::Available,
            State::Failed(_) => RegionStatus::Failed,
            State::Canceled => RegionStatus::Canceled,
            State::Superseded => RegionStatus::Superseded,
        }
    }

    /// How it is known that all of it is there; nothing while it is not, or if that was not recorded.
    #[must_use]
    pub fn verification(&self) -> Option<Verification> {
        if let State::Available(verification) = &self.state { *verification } else { None }
    }

    /// Why it failed, or why its last attempt did.
    #[must_use]
    pub fn last_fault(&self) -> Option<&Fault> {
        match &self.state {
            State::Pending { last, .. } | State::Copying { last, .. } => last.as_ref(),
            State::Suspended { reason: fault } | State::Failed(fault) => Some(fault),
            State::Available(_) | State::Canceled | State::Superseded => None,
        }
    }

    fn ended(&self, state: State, now: Timestamp) -> Self {
        Self { state, finished_at: Some(now), ..self.clone() }
    }
}

#[cfg(test)]
mod tests;
