//! How far a copy has come in its store, counted in steps: what watches a copy compares two counts, and gives up a copy that
//! stands still.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The steps that a copy has taken: a chunk that was read, hashed or written, an operation that returned.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<AtomicU64>);

impl Activity {
    /// Counts one step.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of steps so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
