//! Events of a replica.

use std::time::Duration;

use super::{Progress, WorkerId};
use crate::{Fault, Verification, Warnings};

/// An event of a replica. Events of a worker carry the fence of its claim.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "`fence`, `lease` and `progress` mean the same in every event")]
pub enum Event {
    /// A call requests the replica.
    Request,
    /// A worker claims the replica for the duration of a lease.
    Claim { owner: WorkerId, lease: Duration },
    /// Its worker renews the lease from now and reports progress.
    Renew { fence: u64, lease: Duration, progress: Progress },
    /// Its worker has verified the whole image in the region.
    Verified { fence: u64, progress: Progress, verification: Verification, warnings: Warnings },
    /// An attempt of its worker failed. `retry_after` is the wait before the next attempt, `None` after a final
    /// failure.
    Faulted { fence: u64, fault: Fault, retry_after: Option<Duration>, progress: Progress },
    /// Its worker releases it without counting the attempt, because it is shutting down or retries the copy by itself.
    Release { fence: u64 },
    /// Its lease has expired and no worker has claimed it.
    Expire,
    /// No process has its region configured. `reason` is shown to callers.
    Suspend { reason: Fault },
    /// Its region is configured again.
    Resume,
    /// The clock may have been set back since the replica began to wait or was leased. `lease` is the duration of
    /// leases.
    ClockSetBack { lease: Duration },
    /// The replica was read again and is damaged.
    Damaged { fault: Fault },
    /// The whole replica was read again and matches its digests.
    Confirmed,
    /// Another image takes over its name in the region.
    Supersede,
    /// No running synchronization needs it.
    Cancel,
}
