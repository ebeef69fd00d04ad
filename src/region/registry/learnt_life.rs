//! How long what a registry is shown stays good, where that is only known by what it has refused.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The shortest life that is learnt: what is refused sooner than that is refused for another reason.
pub const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// The longest life that nothing has been refused in; any, as long as nothing was refused.
#[derive(Debug)]
pub struct LearntLife(AtomicU64);

impl Default for LearntLife {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl LearntLife {
    /// A life, or the one that was learnt if that is shorter.
    pub fn bounding(&self, life: Duration) -> Duration {
        life.min(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }

    /// Something of that age was refused and had been good before: half of that age may be good.
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
