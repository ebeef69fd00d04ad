//! How often somebody may do something: the generic cell rate algorithm (ITU-T I.371), which needs one instant a subject.

use std::time::Duration;

use tokio::time::Instant;

/// So many a second, and as many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// What one costs.
    interval: Duration,
    /// What may be spent ahead of time.
    burst: Duration,
}

impl Rate {
    /// `count` in `period`, all of them at once if need be.
    #[must_use]
    pub fn new(count: u32, period: Duration) -> Self {
        Self { interval: period / count.max(1), burst: period }
    }
}

/// What a subject has spent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// When all of it will have been earned again.
    even: Option<Instant>,
}

impl Spent {
    /// How long until one more is due; nothing if it is.
    #[must_use]
    pub fn wait(&self, rate: Rate, now: Instant) -> Option<Duration> {
        let ahead = self.even?.saturating_duration_since(now) + rate.interval;
        ahead.checked_sub(rate.burst).filter(|wait| !wait.is_zero())
    }

    /// Spends one, whether it is due or not.
    pub fn spend(&mut self, rate: Rate, now: Instant) {
        self.even = Some(self.even.map_or(now, |even| even.max(now)) + rate.interval);
    }

    /// Spends one if it is due, or tells how long until then.
    pub fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        match self.wait(rate, now) {
            Some(wait) => Err(wait),
            None => {
                self.spend(rate, now);
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

    use super::{Rate, Spent};

    #[test]
    fn as_many_at_once_as_a_second_has_and_then_one_after_the_other() {
        let (rate, start) = (Rate::new(4, Duration::from_secs(1)), Instant::now());
        let mut spent = Spent::default();
        for _ in 0..4 {
            assert_eq!(spent.take(rate, start), Ok(()));
        }
        assert_eq!(spent.take(rate, start), Err(Duration::from_millis(250)));
        let later = start + Duration::from_millis(250);
        assert_eq!(spent.take(rate, later), Ok(()));
        assert_eq!(spent.take(rate, later), Err(Duration::from_millis(250)));
    }

    proptest! {
        /// In no second more than twice what it has: those at its beginning, and those that are earned in it.
        #[test]
        fn no_more_than_the_rate_comes_through(
            count in 1_u32..20, gaps in proptest::collection::vec(0_u64..200, 1..300)
        ) {
            let (rate, mut now) = (Rate::new(count, Duration::from_secs(1)), Instant::now());
            let (mut spent, mut taken) = (Spent::default(), Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                if spent.take(rate, now).is_ok() {
                    taken.push(now);
                }
            }
            for (place, from) in taken.iter().enumerate() {
                let within = taken[place..].iter().filter(|t| **t - *from < Duration::from_secs(1)).count();
                prop_assert!(within <= 2 * count as usize, "{within} of {count}");
            }
        }
    }
}
