//! How a worker works.

use std::time::Duration;

use crate::domain::Backoff;
use crate::domain::{RegionId, WorkerId};

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name, of this process alone.
    pub id: WorkerId,
    /// The regions that it serves.
    pub regions: Vec<RegionId>,
    /// Images that it carries at the same time at most.
    pub concurrency: usize,
    /// How long a claim is good for after it was made or renewed.
    pub lease: Duration,
    /// How often claims are renewed and progress is written down; well below the lease.
    pub heartbeat: Duration,
    /// How long it waits for a signal before it looks for work by itself.
    pub poll: Duration,
    /// How long a destination may keep the others of its pass waiting before it has to go on alone.
    pub patience: Duration,
    /// How long nothing at all may move before an attempt is given up.
    pub stall: Duration,
    /// How often, and after which waits, it tries again.
    pub backoff: Backoff,
}
