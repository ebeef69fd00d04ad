//! Wake-ups within a process: a replica may be due, or something may have changed. [`super::notify`] forwards them to
//! the other processes where the database carries notifications.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, watch};

/// A wake-up that is never lost. Raising it twice has the same effect as raising it once.
#[derive(Debug)]
pub struct Signal(watch::Sender<u64>);

impl Default for Signal {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Signal {
    /// Wakes every waiter.
    pub fn raise(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Waits until the signal is raised after the count `seen`, and updates `seen`.
    pub async fn raised_since(&self, seen: &mut u64) {
        let mut receiver = self.0.subscribe();
        // Cannot fail: the sender lives as long as `self`.
        if let Ok(count) = receiver.wait_for(|count| count != seen).await {
            *seen = *count;
        }
    }
}

/// The signals of a process.
#[derive(Debug, Default)]
pub struct Signals {
    /// Raised when a replica may have become due.
    pub due: Signal,
    /// Raised when a watched synchronization may have changed.
    pub changed: Signal,
    /// Signals that the other processes have not been notified of.
    pub pending: PendingNotifications,
}

impl Signals {
    /// Signals every process that a replica may have become due.
    pub fn notify_due(&self) {
        self.due.raise();
        self.pending.add(&self.pending.due);
    }

    /// Signals every process that a watched synchronization may have changed.
    pub fn notify_changed(&self) {
        self.changed.raise();
        self.pending.add(&self.pending.changed);
    }

    /// Signals this process that a copy has made progress. Other processes see the progress when they poll.
    pub fn notify_progress(&self) {
        self.changed.raise();
    }
}

/// Signals that the other processes have not been notified of.
#[derive(Debug, Default)]
pub struct PendingNotifications {
    due: AtomicBool,
    changed: AtomicBool,
    added: Notify,
}

impl PendingNotifications {
    fn add(&self, topic: &AtomicBool) {
        if !topic.swap(true, Ordering::AcqRel) {
            self.added.notify_one();
        }
    }

    /// Waits until a notification is pending.
    pub async fn wait(&self) {
        self.added.notified().await;
    }

    /// Takes the pending notifications: whether a replica is due, and whether something changed.
    pub fn take(&self) -> (bool, bool) {
        (self.due.swap(false, Ordering::AcqRel), self.changed.swap(false, Ordering::AcqRel))
    }
}
