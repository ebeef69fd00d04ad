//! How long a destination has kept the others of its group waiting. It is forgiven as time goes by: one that is a little slower
//! than the others stays with them, since whoever goes on alone costs another reading.

use std::time::Duration;

use tokio::time::Instant;

/// How much of the time that passes is forgiven: whoever takes less than that from the others may stay for ever.
const FORGIVEN: u32 = 5;

/// How long a destination has kept the others waiting, less what has been forgiven.
#[derive(Debug, Clone, Copy)]
pub struct Lag {
    owed: Duration,
    /// Until when everything has been counted.
    counted: Instant,
}

impl Lag {
    /// Nothing so far.
    pub fn new(now: Instant) -> Self {
        Self { owed: Duration::ZERO, counted: now }
    }

    /// It kept the others waiting from `since` until `now`. Several blobs may wait for it at once: no time counts twice.
    pub fn kept_waiting(&mut self, since: Instant, now: Instant) {
        let waited = now.saturating_duration_since(since.max(self.counted));
        self.owed = self.owed_at(since.max(self.counted)) + waited;
        self.counted = self.counted.max(now);
    }

    /// What it owes.
    pub fn owed_at(&self, now: Instant) -> Duration {
        self.owed.saturating_sub(now.saturating_duration_since(self.counted) / FORGIVEN)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Lag;

    #[test]
    fn who_is_a_little_slower_stays_and_who_is_much_slower_leaves() {
        let start = Instant::now();
        let second = |n: u32| start + Duration::from_secs(1) * n;
        let (mut little, mut much) = (Lag::new(start), Lag::new(start));
        for n in 0..100 {
            let beginning = second(n);
            little.kept_waiting(beginning, beginning + Duration::from_millis(150));
            much.kept_waiting(beginning, beginning + Duration::from_millis(900));
        }
        assert!(little.owed_at(second(100)) < Duration::from_secs(1), "{little:?}");
        assert!(much.owed_at(second(100)) > Duration::from_secs(50), "{much:?}");
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
