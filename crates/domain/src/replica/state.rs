//! States of a replica.

use std::{fmt, sync::Arc};

use crate::{Fault, Timestamp, Verification};

/// Id of a running worker process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkerId(pub Arc<str>);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A worker's exclusive right to copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The worker that holds the lease.
    pub owner: WorkerId,
    /// Expiry, unless the lease is renewed.
    pub until: Timestamp,
}

/// Progress of an attempt, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Size of the image.
    pub total: u64,
    /// Bytes moved by this attempt.
    pub copied: u64,
    /// Bytes that the region already had.
    pub skipped: u64,
}

/// State of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ReplicaState {
    /// It waits for a worker.
    Pending {
        /// Start of the wait.
        since: Timestamp,
        /// Earliest time of a claim, `since` or later.
        not_before: Timestamp,
        /// Fault of the last attempt.
        last_fault: Option<Fault>,
    },
    /// It waits until a process has its region configured. Until then, no worker can claim it. Callers see it as
    /// PENDING.
    Suspended {
        /// Reason that callers see.
        reason: Fault,
    },
    /// A worker copies it.
    Copying {
        /// The worker's lease.
        lease: Lease,
        /// Fault of the last attempt.
        last_fault: Option<Fault>,
    },
    /// The region has the whole image. Holds how it was verified, if that was recorded.
    Available(Option<Verification>),
    /// It failed and is not retried.
    Failed(Fault),
    Canceled,
    /// It was available until another image took over its name.
    Superseded,
}

impl ReplicaState {
    /// Creates the state of a replica that a worker may claim at once.
    #[must_use]
    pub fn due(now: Timestamp, last_fault: Option<Fault>) -> Self {
        Self::Pending { since: now, not_before: now, last_fault }
    }
}

/// Terminal state of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Outcome {
    /// The region has the image.
    Available,
    Failed(Fault),
    Canceled,
    /// It was available until another image took over its name.
    Superseded,
}
