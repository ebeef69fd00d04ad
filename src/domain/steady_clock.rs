//! Time that neither jumps nor stands still, whatever is done to the system's clock, and how a jump of another clock is detected.

use std::time::Duration;

use super::Timestamp;

/// A clock that follows another one, which may be set: it never goes back, and while both differ it goes at between half and twice the
/// speed of the time that really passes. A lease lasts at most twice as long then, and never less than half as long: a worker renews
/// it in time, since it does so three times in the time of a lease at least.
#[derive(Debug, Clone)]
pub struct SteadyClock {
    /// What it told last, since the Unix epoch.
    told: Duration,
    /// The time that had passed by then, since an instant of no importance.
    passed: Duration,
}

impl SteadyClock {
    /// Begins with what the other clock tells. `passed` is the time that has passed since an instant of no importance.
    #[must_use]
    pub fn new(wall: Timestamp, passed: Duration) -> Self {
        Self { told: since_epoch(wall), passed }
    }

    /// The time, `wall` being what the other clock tells.
    pub fn tell(&mut self, wall: Timestamp, passed: Duration) -> Timestamp {
        let since = passed.saturating_sub(self.passed);
        self.passed = self.passed.max(passed);
        // Instants are counted in milliseconds, and the clock is asked more often than that: it keeps the rest.
        self.told = since_epoch(wall).clamp(self.told + since / 2, self.told + since * 2);
        Timestamp::from_millis(0).after(self.told)
    }
}

fn since_epoch(time: Timestamp) -> Duration {
    Timestamp::from_millis(0).until(time)
}

/// Watches a foreign clock, such as a database server's, and detects when it is set.
#[derive(Debug, Clone, Default)]
pub struct ClockWatch {
    /// What the clock told, and the time that had passed by then, when both were last believed.
    believed: Option<(Timestamp, Duration)>,
    /// When the clock began to differ.
    since: Option<Duration>,
}

/// Whether a clock can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// It can: it has not been set, or was long ago.
    Steady,
    /// It can't: it was set since it was last looked at.
    JustSet,
    /// It can't yet: it was set a while ago.
    Set,
}

/// How far a clock may differ from the time that has passed since it was last looked at.
const TOLERANCE: Duration = Duration::from_secs(60);

/// For how long a clock must go steadily, after it was set, before it is believed.
const PROBATION: Duration = Duration::from_secs(3_600);

impl ClockWatch {
    /// Looks at the clock.
    pub fn look(&mut self, clock: Timestamp, passed: Duration) -> Belief {
        let Some((told, at)) = self.believed else {
            self.believed = Some((clock, passed));
            return Belief::Steady;
        };
        let expected = told.after(passed.saturating_sub(at));
        if expected.until(clock).max(clock.until(expected)) <= TOLERANCE {
            self.believed = Some((clock, passed));
            self.since = None;
            return Belief::Steady;
        }
        let Some(since) = self.since else {
            self.since = Some(passed);
            return Belief::JustSet;
        };
        if passed.saturating_sub(since) < PROBATION {
            return Belief::Set;
        }
        *self = Self { believed: Some((clock, passed)), since: None };
        Belief::Steady
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Belief, ClockWatch, PROBATION, SteadyClock, TOLERANCE};
    use crate::domain::Timestamp;

    const START: Timestamp = Timestamp::from_millis(1_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn back(time: Timestamp, by: Duration) -> Timestamp {
        Timestamp::from_millis(time.as_millis() - i64::try_from(by.as_millis()).expect("small"))
    }

    proptest! {
        /// Whatever the other clock is set to, a lease that is taken lasts between half and twice its time.
        #[test]
        fn it_goes_at_between_half_and_twice_the_speed(
            steps in prop::collection::vec((0..5_000_000u64, -4_000_000_000i64..4_000_000_000), 1..200),
        ) {
            let mut clock = SteadyClock::new(START, Duration::ZERO);
            let (mut passed, mut before) = (Duration::ZERO, START);
            for (micros, off) in steps {
                passed += Duration::from_micros(micros);
                let wall = Timestamp::from_millis(START.after(passed).as_millis() + off);
                let now = clock.tell(wall, passed);
                prop_assert!(now >= before);
                let (least, most) = (START.after(passed / 2).as_millis() - 1, START.after(passed * 2).as_millis() + 1);
                prop_assert!((least..=most).contains(&now.as_millis()));
                before = now;
            }
        }
    }

    #[test]
    fn it_is_the_other_clock_while_that_is_not_set() {
        let mut clock = SteadyClock::new(START, Duration::ZERO);
        for micros in (0..3_000_000).step_by(77) {
            let passed = Duration::from_micros(micros);
            let told = clock.tell(START.after(passed), passed);
            assert!(told.until(START.after(passed)) <= Duration::from_millis(1), "{passed:?}");
        }
    }

    #[test]
    fn it_comes_back_to_the_other_clock() {
        let mut clock = SteadyClock::new(START, Duration::ZERO);
        for minutes in 1..=121 {
            let passed = HOUR / 60 * minutes;
            let (ahead, told) = (back(START.after(passed), HOUR), clock.tell(back(START.after(passed), HOUR), passed));
            assert_eq!(told == ahead, minutes >= 120, "{minutes}");
        }
        let mut clock = SteadyClock::new(START, Duration::ZERO);
        for minutes in 1..=61 {
            let passed = HOUR / 60 * minutes;
            let ahead = START.after(passed + HOUR);
            assert_eq!(clock.tell(ahead, passed) == ahead, minutes >= 60, "{minutes}");
        }
    }

    #[test]
    fn a_clock_that_is_set_is_not_believed_for_an_hour() {
        let day = HOUR * 24;
        for jumped in [START.after(day * 100), back(START, day)] {
            let mut watch = ClockWatch::default();
            assert_eq!(watch.look(START, Duration::ZERO), Belief::Steady);
            assert_eq!(watch.look(START.after(HOUR), HOUR), Belief::Steady, "it goes");
            let begun = HOUR + Duration::from_secs(5);
            assert_eq!(watch.look(jumped.after(begun), begun), Belief::JustSet);
            for passed in [begun + Duration::from_secs(5), begun + PROBATION / 60 * 59] {
                assert_eq!(watch.look(jumped.after(passed), passed), Belief::Set, "{passed:?}");
            }
            for passed in [begun + PROBATION, begun + PROBATION * 2] {
                assert_eq!(watch.look(jumped.after(passed), passed), Belief::Steady, "{passed:?}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_right_again_is_believed_at_once() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.look(START, Duration::ZERO), Belief::Steady);
        let second = Duration::from_secs(1);
        assert_eq!(watch.look(START.after(HOUR), second), Belief::JustSet);
        assert_eq!(watch.look(START.after(second * 2 + TOLERANCE), second * 2), Belief::Steady);
    }
}
