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
    /// Images that it copies into each region at the same time. (Twice as many where regions that keep up with each other stay together.)
    pub concurrency: usize,
    /// How long a claim is good for after it was made or renewed.
    pub lease: Duration,
    /// How often claims are renewed and progress is written down; well below the lease.
    pub heartbeat: Duration,
    /// How long it waits for a signal before it looks for work by itself.
    pub poll: Duration,
    /// How long a region may keep the others of its image waiting at most before it continues alone.
    pub patience: Duration,
    /// How long a copy may show no progress before the attempt is given up.
    pub stall: Duration,
    /// How often, and after which waits, it tries again.
    pub backoff: Backoff,
}
