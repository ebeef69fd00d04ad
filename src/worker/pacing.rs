//! How many bytes may pass out of and into each region in a second.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// How much of a second may pass at once after nothing has passed for a while.
const BURST: Duration = Duration::from_millis(50);

/// Bytes a second that may pass.
#[derive(Debug)]
pub struct Pace {
    /// Nothing for any number.
    bytes_per_second: Option<u64>,
    /// The part of it that is this process's, as the bits of a number up to 1.
    part: AtomicU64,
    /// Until when what has passed is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// A pace; without a number, any.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, part: AtomicU64::new(1_f64.to_bits()), paid: Mutex::new(Instant::now()) }
    }

    /// Leaves the rest to other processes: `ours` of `all` copies are made here.
    pub fn share(&self, ours: u32, all: u32) {
        // A process without copies is about to begin, if it asks at all.
        let part = f64::from(ours.max(1)) / f64::from(all.max(ours).max(1));
        self.part.store(part.to_bits(), Relaxed);
    }

    /// Waits until as many bytes may pass.
    pub async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        #[allow(clippy::cast_precision_loss)]
        let cost = Duration::from_secs_f64(bytes as f64 / (rate as f64 * f64::from_bits(self.part.load(Relaxed))));
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            *paid = (*paid).max(Instant::now() - BURST) + cost;
            *paid
        };
        sleep_until(until).await;
    }
}

/// The paces of a region.
#[derive(Debug)]
pub struct Paces {
    /// Out of it.
    pub egress: Pace,
    /// Into it.
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
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(4_900) && took <= Duration::from_millis(5_100), "{took:?}");
        Pace::new(None).take(usize::MAX).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_that_is_shared_leaves_the_rest_to_others() {
        let pace = Pace::new(Some(1_000_000));
        pace.share(1, 4);
        let start = Instant::now();
        for _ in 0..10 {
            pace.take(100_000).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(3_900) && took <= Duration::from_millis(4_100), "{took:?}");
    }
}
