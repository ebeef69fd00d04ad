//! Limits how long a destination may keep the others of its fan-out waiting. A destination that is a little slower
//! stays with the others, because a detached destination costs another read of the source. The others nevertheless lose
//! at most a tenth of their time.

use std::time::Duration;

use tokio::time::Instant;

/// Divisor of the elapsed time. The result is the time that the others may lose to a destination: a tenth.
const LOSS_DIVISOR: u32 = 10;

/// Divisor of the patience. The result may be lost at the start, when a tenth of the elapsed time is next to nothing.
const FIRST_LOSS_DIVISOR: u32 = 20;

/// The time that a destination has kept the others waiting.
#[derive(Debug, Clone, Copy)]
pub struct Lag {
    since: Instant,
    owed: Duration,
    /// The time up to which waits are counted.
    counted: Instant,
}

impl Lag {
    /// Creates the lag of a destination that joins at `now`.
    pub fn new(now: Instant) -> Self {
        Self { since: now, owed: Duration::ZERO, counted: now }
    }

    /// Counts a wait of the others from `since` to `now`. Several blobs may wait for the destination at once:
    /// overlapping times count once.
    pub fn kept_waiting(&mut self, since: Instant, now: Instant) {
        let waited = now.saturating_duration_since(since.max(self.counted));
        self.owed = self.owed_at(since.max(self.counted)) + waited;
        self.counted = self.counted.max(now);
    }

    /// Returns how much longer the destination may keep the others waiting: a tenth of the elapsed time, and at most
    /// `patience` at once.
    pub fn left(&self, patience: Duration, now: Instant) -> Duration {
        let allowed = now.saturating_duration_since(self.since) / LOSS_DIVISOR;
        allowed.max(patience / FIRST_LOSS_DIVISOR).min(patience).saturating_sub(self.owed_at(now))
    }

    /// Returns the counted time at `now`, reduced by a tenth of the time that has passed since the last count.
    fn owed_at(&self, now: Instant) -> Duration {
        self.owed.saturating_sub(now.saturating_duration_since(self.counted) / LOSS_DIVISOR)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Lag;

    const PATIENCE: Duration = Duration::from_secs(2);

    #[test]
    fn a_little_slower_stays_and_much_slower_leaves() {
        let start = Instant::now();
        let second = |n: u32| start + Duration::from_secs(1) * n;
        let (mut little, mut much) = (Lag::new(start), Lag::new(start));
        for n in 1..100 {
            let beginning = second(n);
            assert!(!little.left(PATIENCE, beginning).is_zero(), "after {n} s: {little:?}");
            little.kept_waiting(beginning, beginning + Duration::from_millis(60));
            much.kept_waiting(beginning, beginning + Duration::from_millis(500));
        }
        assert!(much.left(PATIENCE, second(100)).is_zero(), "{much:?}");
    }

    #[test]
    fn a_short_copy_is_not_delayed_by_the_whole_patience() {
        let start = Instant::now();
        let lag = Lag::new(start);
        assert_eq!(lag.left(PATIENCE, start), Duration::from_millis(100));
        assert_eq!(lag.left(PATIENCE, start + Duration::from_secs(5)), Duration::from_millis(500));
        assert_eq!(lag.left(PATIENCE, start + Duration::from_secs(500)), PATIENCE);
    }

    #[test]
    fn what_several_blobs_wait_for_at_once_counts_once() {
        let start = Instant::now();
        let mut lag = Lag::new(start);
        let end = start + Duration::from_secs(2);
        for _ in 0..10 {
            lag.kept_waiting(start, end);
        }
        assert_eq!(lag.owed_at(end), Duration::from_secs(2));
    }
}
