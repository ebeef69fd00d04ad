//! The progress of a copy, updated while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

use domain::Progress;

/// Counts the bytes of a copy. The heartbeat reads the counts while the copy writes.
#[derive(Debug, Default)]
pub struct Meter {
    total: AtomicU64,
    copied: AtomicU64,
    skipped: AtomicU64,
}

impl Meter {
    /// Returns the current progress.
    pub fn read(&self) -> Progress {
        Progress {
            total: self.total.load(Ordering::Relaxed),
            copied: self.copied.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }

    /// Replaces the progress.
    pub fn set(&self, progress: Progress) {
        self.total.store(progress.total, Ordering::Relaxed);
        self.copied.store(progress.copied, Ordering::Relaxed);
        self.skipped.store(progress.skipped, Ordering::Relaxed);
    }

    /// Adds bytes that were sent to the store.
    pub(super) fn add_copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Subtracts the bytes of a write that failed.
    pub(super) fn remove_copied(&self, bytes: u64) {
        self.copied.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Reduces the total by bytes that will not be copied and without which the image is complete.
    pub(super) fn shrink_total(&self, bytes: u64) {
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Adds bytes that the store had already.
    pub(super) fn add_skipped(&self, bytes: u64) {
        self.skipped.fetch_add(bytes, Ordering::Relaxed);
    }
}
