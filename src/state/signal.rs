//! A wake-up that is never lost and never queues: raising it twice is raising it once.

use tokio::sync::watch;

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
