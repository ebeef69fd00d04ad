//! A clock without jumps, and detection of jumps of another clock.

use std::time::Duration;

use super::Timestamp;

/// A clock that follows another clock, which may be set. It never goes back. While the two differ, it runs at between
/// half and twice the speed of real time. A lease then lasts between half and twice its duration. Workers still renew
/// their leases in time, because they do so at least three times per lease.
#[derive(Debug, Clone)]
pub struct SteadyClock {
    /// Last reading, as time since the Unix epoch.
    last: Duration,
    /// Monotonic time of that reading.
    passed: Duration,
}

impl SteadyClock {
    /// Creates a clock that starts at the time of the other clock. `passed` is the time since an arbitrary instant.
    #[must_use]
    pub fn new(wall: Timestamp, passed: Duration) -> Self {
        Self { last: since_epoch(wall), passed }
    }

    /// Returns the time. `wall` is the time of the other clock, `passed` the time since the instant of
    /// [`SteadyClock::new`].
    pub fn now(&mut self, wall: Timestamp, passed: Duration) -> Timestamp {
        let since = passed.saturating_sub(self.passed);
        self.passed = self.passed.max(passed);
        // Keeps fractions of a millisecond, because the clock is read more often than once per millisecond.
        self.last = since_epoch(wall).clamp(self.last + since / 2, self.last + since * 2);
        Timestamp::from_millis(0).after(self.last)
    }
}

fn since_epoch(time: Timestamp) -> Duration {
    Timestamp::from_millis(0).until(time)
}

/// Detects when a foreign clock, such as a database server's, is set.
#[derive(Debug, Clone, Default)]
pub struct ClockWatch {
    /// Last trusted reading and its monotonic time.
    reference: Option<(Timestamp, Duration)>,
    /// Monotonic time at which the clock began to differ.
    since: Option<Duration>,
}

/// Whether a clock can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockState {
    /// It has run steadily for long enough.
    Steady,
    /// It was set since the last observation.
    JustSet,
    /// It was set recently.
    Unsteady,
}

/// Maximum difference between the times that passed on the clock and on the monotonic clock since the last observation.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Time for which a clock that was set must run steadily before it is trusted again.
const PROBATION: Duration = Duration::from_secs(3_600);

impl ClockWatch {
    /// Observes the clock. `passed` is the time since an arbitrary instant.
    pub fn observe(&mut self, clock: Timestamp, passed: Duration) -> ClockState {
        let Some((reading, at)) = self.reference else {
            self.reference = Some((clock, passed));
            return ClockState::Steady;
        };
        let expected = reading.after(passed.saturating_sub(at));
        if expected.until(clock).max(clock.until(expected)) <= TOLERANCE {
            self.reference = Some((clock, passed));
            self.since = None;
            return ClockState::Steady;
        }
        let Some(since) = self.since else {
            self.since = Some(passed);
            return ClockState::JustSet;
        };
        if passed.saturating_sub(since) < PROBATION {
            return ClockState::Unsteady;
        }
        *self = Self { reference: Some((clock, passed)), since: None };
        ClockState::Steady
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{ClockState, ClockWatch, PROBATION, SteadyClock, TOLERANCE};
    use crate::Timestamp;

    const START: Timestamp = Timestamp::from_millis(1_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn back(time: Timestamp, by: Duration) -> Timestamp {
        Timestamp::from_millis(time.as_millis() - i64::try_from(by.as_millis()).expect("small"))
    }

    proptest! {
        /// A lease lasts between half and twice its duration, for any setting of the other clock.
        #[test]
        fn the_clock_runs_at_between_half_and_twice_the_speed(
            steps in prop::collection::vec((0..5_000_000u64, -4_000_000_000i64..4_000_000_000), 1..200),
        ) {
            let mut clock = SteadyClock::new(START, Duration::ZERO);
            let (mut passed, mut before) = (Duration::ZERO, START);
            for (micros, off) in steps {
                passed += Duration::from_micros(micros);
                let wall = Timestamp::from_millis(START.after(passed).as_millis() + off);
                let now = clock.now(wall, passed);
                prop_assert!(now >= before);
                let (min, max) = (START.after(passed / 2).as_millis() - 1, START.after(passed * 2).as_millis() + 1);
                prop_assert!((min..=max).contains(&now.as_millis()));
                before = now;
            }
        }
    }

    #[test]
    fn the_clock_equals_a_clock_that_is_not_set() {
        let mut clock = SteadyClock::new(START, Duration::ZERO);
        for micros in (0..3_000_000).step_by(77) {
            let passed = Duration::from_micros(micros);
            let reading = clock.now(START.after(passed), passed);
            assert!(reading.until(START.after(passed)) <= Duration::from_millis(1), "{passed:?}");
        }
    }

    #[test]
    fn the_clock_converges_to_a_clock_that_was_set() {
        let mut clock = SteadyClock::new(START, Duration::ZERO);
        for minutes in 1..=121 {
            let passed = HOUR / 60 * minutes;
            let (ahead, reading) =
                (back(START.after(passed), HOUR), clock.now(back(START.after(passed), HOUR), passed));
            assert_eq!(reading == ahead, minutes >= 120, "{minutes}");
        }
        let mut clock = SteadyClock::new(START, Duration::ZERO);
        for minutes in 1..=61 {
            let passed = HOUR / 60 * minutes;
            let ahead = START.after(passed + HOUR);
            assert_eq!(clock.now(ahead, passed) == ahead, minutes >= 60, "{minutes}");
        }
    }

    #[test]
    fn a_clock_that_was_set_is_not_trusted_for_an_hour() {
        let day = HOUR * 24;
        for jumped in [START.after(day * 100), back(START, day)] {
            let mut watch = ClockWatch::default();
            assert_eq!(watch.observe(START, Duration::ZERO), ClockState::Steady);
            assert_eq!(watch.observe(START.after(HOUR), HOUR), ClockState::Steady, "it goes");
            let begun = HOUR + Duration::from_secs(5);
            assert_eq!(watch.observe(jumped.after(begun), begun), ClockState::JustSet);
            for passed in [begun + Duration::from_secs(5), begun + PROBATION / 60 * 59] {
                assert_eq!(watch.observe(jumped.after(passed), passed), ClockState::Unsteady, "{passed:?}");
            }
            for passed in [begun + PROBATION, begun + PROBATION * 2] {
                assert_eq!(watch.observe(jumped.after(passed), passed), ClockState::Steady, "{passed:?}");
            }
        }
    }

    #[test]
    fn a_corrected_clock_is_trusted_at_once() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.observe(START, Duration::ZERO), ClockState::Steady);
        let second = Duration::from_secs(1);
        assert_eq!(watch.observe(START.after(HOUR), second), ClockState::JustSet);
        assert_eq!(watch.observe(START.after(second * 2 + TOLERANCE), second * 2), ClockState::Steady);
    }
}
