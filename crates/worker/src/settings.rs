//! The settings of a worker.

use std::time::Duration;

use domain::{Backoff, RegionId, WorkerId};

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The owner of the worker's leases, unique to the process.
    pub id: WorkerId,
    /// The regions that the worker serves.
    pub regions: Vec<RegionId>,
    /// The number of concurrent copies into each region. Up to twice as many run where regions of equal speed share a
    /// transfer.
    pub concurrency: usize,
    /// How long a claim is valid after it was acquired or renewed.
    pub lease: Duration,
    /// The interval at which claims are renewed and progress is stored; at most a third of the lease.
    pub heartbeat: Duration,
    /// The interval at which the worker polls for work when no signal arrives.
    pub poll: Duration,
    /// How long a region may keep the other regions of its image waiting before it is detached from them.
    pub patience: Duration,
    /// How long a copy may make no progress before the attempt is aborted.
    pub stall: Duration,
    /// The number of attempts and the waits between them.
    pub backoff: Backoff,
}
