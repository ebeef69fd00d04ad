//! Limits the bandwidth out of and into each region.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// The time span whose share of bytes may pass at once after an idle period.
const BURST: Duration = Duration::from_millis(50);

/// A rate limiter for bytes.
#[derive(Debug)]
pub struct Pace {
    /// The limit; `None` is unlimited.
    bytes_per_second: Option<u64>,
    /// This process's share of the limit, from 0 to 1, as the bits of an `f64`.
    share: AtomicU64,
    /// Time from which the bytes that have passed are within the limit.
    due: Mutex<Instant>,
}

impl Pace {
    /// Creates a limiter of `bytes_per_second`; `None` is unlimited.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, share: AtomicU64::new(1_f64.to_bits()), due: Mutex::new(Instant::now()) }
    }

    /// Sets this process's share of the limit: `ours` of the `all` copies of the region run here.
    pub fn set_share(&self, ours: u32, all: u32) {
        // A process that takes bytes before its first copy is counted gets the share of one copy.
        let share = f64::from(ours.max(1)) / f64::from(all.max(ours).max(1));
        self.share.store(share.to_bits(), Relaxed);
    }

    /// Waits until `bytes` may pass.
    pub async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        #[allow(clippy::cast_precision_loss)]
        let cost = Duration::from_secs_f64(bytes as f64 / (rate as f64 * f64::from_bits(self.share.load(Relaxed))));
        let until = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            *due = (*due).max(Instant::now() - BURST) + cost;
            *due
        };
        sleep_until(until).await;
    }
}

/// The limiters of a region.
#[derive(Debug)]
pub struct Paces {
    /// For bytes read from the region.
    pub egress: Pace,
    /// For bytes written to the region.
    pub ingress: Pace,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Pace;

    #[tokio::test(start_paused = true)]
    async fn no_more_passes_than_the_pace_allows() {
        let pace = Pace::new(Some(1_000_000));
        let start = Instant::now();
        for _ in 0..50 {
            pace.take(100_000).await;
        }
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_millis(4_900) && elapsed <= Duration::from_millis(5_100), "{elapsed:?}");
        Pace::new(None).take(usize::MAX).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_that_is_shared_leaves_the_rest_to_others() {
        let pace = Pace::new(Some(1_000_000));
        pace.set_share(1, 4);
        let start = Instant::now();
        for _ in 0..10 {
            pace.take(100_000).await;
        }
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_millis(3_900) && elapsed <= Duration::from_millis(4_100), "{elapsed:?}");
    }
}
