//! Rate limiting by the generic cell rate algorithm (ITU-T I.371), which needs one instant per subject.

use std::time::Duration;

use tokio::time::Instant;

/// A rate of events, and the burst that it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time between two events at the steady rate.
    interval: Duration,
    /// Tolerance: how far events may be ahead of the steady rate.
    burst: Duration,
}

impl Rate {
    /// Allows `count` events per `period`, which may come in one burst.
    #[must_use]
    pub fn new(count: u32, period: Duration) -> Self {
        Self { interval: period / count.max(1), burst: period }
    }
}

/// Counts the events of one subject.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateLimiter {
    /// The "theoretical arrival time": when the next event is due at the steady rate.
    next_due: Option<Instant>,
}

impl RateLimiter {
    /// Returns the time until an event is allowed; `None` if one is allowed now.
    fn time_until_allowed(&self, rate: Rate, now: Instant) -> Option<Duration> {
        let ahead = self.next_due?.saturating_duration_since(now) + rate.interval;
        ahead.checked_sub(rate.burst).filter(|wait| !wait.is_zero())
    }

    /// Counts an event, allowed or not.
    fn count(&mut self, rate: Rate, now: Instant) {
        self.next_due = Some(self.next_due.map_or(now, |due| due.max(now)) + rate.interval);
    }

    /// Counts an event if it is allowed, or returns the time until it is.
    pub fn try_acquire(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        match self.time_until_allowed(rate, now) {
            Some(wait) => Err(wait),
            None => {
                self.count(rate, now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{Rate, RateLimiter};

    #[test]
    fn a_burst_is_followed_by_the_steady_rate() {
        let (rate, start) = (Rate::new(4, Duration::from_secs(1)), Instant::now());
        let mut limiter = RateLimiter::default();
        for _ in 0..4 {
            assert_eq!(limiter.try_acquire(rate, start), Ok(()));
        }
        assert_eq!(limiter.try_acquire(rate, start), Err(Duration::from_millis(250)));
        let later = start + Duration::from_millis(250);
        assert_eq!(limiter.try_acquire(rate, later), Ok(()));
        assert_eq!(limiter.try_acquire(rate, later), Err(Duration::from_millis(250)));
    }

    proptest! {
        /// No second has more events than a burst and the steady rate together.
        #[test]
        fn no_more_events_than_the_rate_are_allowed(
            count in 1_u32..20, gaps in proptest::collection::vec(0_u64..200, 1..300)
        ) {
            let (rate, mut now) = (Rate::new(count, Duration::from_secs(1)), Instant::now());
            let (mut limiter, mut allowed) = (RateLimiter::default(), Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                if limiter.try_acquire(rate, now).is_ok() {
                    allowed.push(now);
                }
            }
            for (index, from) in allowed.iter().enumerate() {
                let within = allowed[index..].iter().filter(|t| **t - *from < Duration::from_secs(1)).count();
                prop_assert!(within <= 2 * count as usize, "{within} of {count}");
            }
        }
    }
}
