//! Lifetime of tokens or credentials, learned from the age at which the registry rejected them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Shortest lifetime that is learned. A rejection at a younger age has another reason.
pub const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// Longest lifetime within which the registry has rejected nothing, in milliseconds; `u64::MAX` until the first
/// rejection.
#[derive(Debug)]
pub struct LearntLife(AtomicU64);

impl Default for LearntLife {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl LearntLife {
    /// Returns the smaller of `life` and the learned lifetime.
    pub fn bounding(&self, life: Duration) -> Duration {
        life.min(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }

    /// Records that a value that used to be valid was rejected at `age`, and caps the lifetime at half of this age.
    pub fn learn(&self, age: Duration) {
        let life = (age / 2).max(SHORTEST_LIFE);
        self.0.fetch_min(u64::try_from(life.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LearntLife, SHORTEST_LIFE};

    #[test]
    fn a_life_only_becomes_shorter_and_never_nothing() {
        let seconds = Duration::from_secs;
        let life = LearntLife::default();
        assert_eq!(life.bounding(seconds(300)), seconds(300));
        life.learn(seconds(12));
        assert_eq!((life.bounding(seconds(300)), life.bounding(seconds(4))), (seconds(6), seconds(4)));
        life.learn(seconds(40));
        assert_eq!(life.bounding(seconds(300)), seconds(6));
        life.learn(Duration::ZERO);
        assert_eq!(life.bounding(seconds(300)), SHORTEST_LIFE);
    }
}
