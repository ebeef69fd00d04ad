//! Detects failovers: connections that were opened before a failover lead to a server that rejects writes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Time of the last rejected write or broken connection, shared by all pools of a process.
#[derive(Debug, Clone)]
pub struct FailoverMarker {
    epoch: Instant,
    /// Milliseconds since `epoch`; 0 before the first mark.
    marked_at: Arc<AtomicU64>,
}

impl Default for FailoverMarker {
    fn default() -> Self {
        Self { epoch: Instant::now(), marked_at: Arc::default() }
    }
}

impl FailoverMarker {
    /// Records that a server rejected a write or that an idle connection was broken.
    pub fn mark(&self) {
        self.marked_at.store(self.now(), Ordering::Relaxed);
    }

    /// Whether a connection of that age was opened before the last mark.
    pub fn is_after_opening(&self, age: Duration) -> bool {
        let marked_at = self.marked_at.load(Ordering::Relaxed);
        marked_at > 0 && self.now().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)) <= marked_at
    }

    /// Returns the milliseconds since `epoch`, plus 1, so that the value is never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}
