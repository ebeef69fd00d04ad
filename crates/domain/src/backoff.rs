//! Waits between attempts.

use std::time::Duration;

/// Exponential backoff with jitter.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Wait after the first fault.
    pub first: Duration,
    /// Maximum wait.
    pub longest: Duration,
    /// Maximum number of failed attempts.
    pub attempts: u32,
}

impl Backoff {
    /// Returns the wait after a failed attempt, or `None` after the last attempt. `faults` is the number of earlier
    /// failed attempts. `jitter`, from 0 to 1, shortens the wait by up to a half, so that copies that failed together
    /// are not retried together.
    #[must_use]
    pub fn wait(&self, faults: u32, jitter: f64) -> Option<Duration> {
        if faults.saturating_add(1) >= self.attempts {
            return None;
        }
        let whole = self.first.saturating_mul(1 << faults.min(20)).min(self.longest);
        Some(whole.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::Backoff;

    proptest! {
        #[test]
        fn waits_double_up_to_the_longest_and_end(faults in 0..40u32, jitter in 0.0..=1.0f64, attempts in 1..40u32) {
            let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60), attempts };
            match backoff.wait(faults, jitter) {
                None => prop_assert!(faults + 1 >= attempts),
                Some(wait) => {
                    prop_assert!(faults + 1 < attempts);
                    let whole = 2f64.powi(i32::try_from(faults).expect("small")).min(60.0);
                    prop_assert!(wait.as_secs_f64() <= whole + 1e-6 && wait.as_secs_f64() >= whole / 2.0 - 1e-6);
                }
            }
        }
    }
}
