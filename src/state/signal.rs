//! Wake-ups: that something may be due, that something may have changed. Raised here, and, where the database carries messages, in
//! the other processes as well.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, watch};

/// A wake-up that is never lost and never queues: raising it twice is raising it once.
#[derive(Debug)]
pub struct Signal(watch::Sender<u64>);

impl Default for Signal {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Signal {
    pub fn raise(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Waits until it has been raised since it stood at `seen`, and moves `seen` on.
    pub async fn raised_since(&self, seen: &mut u64) {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as `self`, so that waiting can't fail.
        if let Ok(count) = receiver.wait_for(|count| count != seen).await {
            *seen = *count;
        }
    }
}

/// The wake-ups of a process.
#[derive(Debug, Default)]
pub struct Signals {
    /// Raised when a replica may have become due.
    pub due: Signal,
    /// Raised when what a watcher sees may have changed.
    pub changed: Signal,
    /// What the other processes have yet to be told.
    pub untold: Untold,
}

impl Signals {
    /// A replica may have become due.
    pub fn due(&self) {
        self.due.raise();
        self.untold.note(&self.untold.due);
    }

    /// What watchers see may have changed.
    pub fn changed(&self) {
        self.changed.raise();
        self.untold.note(&self.untold.changed);
    }

    /// What watchers see has gone on. Those of other processes see it when they look by themselves.
    pub fn progressed(&self) {
        self.changed.raise();
    }
}

/// What the other processes have yet to be told.
#[derive(Debug, Default)]
pub struct Untold {
    due: AtomicBool,
    changed: AtomicBool,
    any: Notify,
}

impl Untold {
    fn note(&self, what: &AtomicBool) {
        if !what.swap(true, Ordering::AcqRel) {
            self.any.notify_one();
        }
    }

    /// Resolves when there is something to tell.
    pub async fn any(&self) {
        self.any.notified().await;
    }

    /// Takes what is to be told: whether something is due, whether something has changed.
    pub fn take(&self) -> (bool, bool) {
        (self.due.swap(false, Ordering::AcqRel), self.changed.swap(false, Ordering::AcqRel))
    }
}
