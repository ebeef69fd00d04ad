//! Attempts to guess: sources whose credentials proved nothing again and again are not asked for a while.

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lru::LruCache;
use tokio::time::Instant;

use super::rate::{Rate, Spent};

/// The most sources that are remembered, those that failed last.
const SOURCES: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not 0");

/// See the module.
#[derive(Debug)]
pub struct Attempts {
    rate: Rate,
    /// Whether anybody has ever failed. As long as nobody has, nobody waits for the others.
    any: AtomicBool,
    failed: Mutex<LruCache<IpAddr, Spent>>,
}

impl Attempts {
    /// So many a minute may fail, and as many at once.
    #[must_use]
    pub fn new(failures_per_minute: u32) -> Self {
        let rate = Rate::new(failures_per_minute, Duration::from_secs(60));
        Self { rate, any: AtomicBool::new(false), failed: Mutex::new(LruCache::new(SOURCES)) }
    }

    /// How long a source has to wait before it is asked again; nothing if it may go on.
    #[must_use]
    pub fn wait(&self, source: IpAddr, now: Instant) -> Option<Duration> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.peek(&source)?.wait(self.rate, now)
    }

    /// A source's credential proved nothing.
    pub fn failed(&self, source: IpAddr, now: Instant) {
        self.any.store(true, Ordering::Release);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_mut(source, Spent::default).spend(self.rate, now);
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use tokio::time::Instant;

    use super::Attempts;

    #[test]
    fn who_fails_too_often_waits_and_nobody_else() {
        let (attempts, now) = (Attempts::new(3), Instant::now());
        let [one, other]: [IpAddr; 2] = [1, 2].map(|last| [192, 0, 2, last].into());
        for _ in 0..3 {
            assert_eq!(attempts.wait(one, now), None);
            attempts.failed(one, now);
        }
        assert_eq!(attempts.wait(one, now), Some(Duration::from_secs(20)));
        assert_eq!(attempts.wait(other, now), None);
        assert_eq!(attempts.wait(one, now + Duration::from_secs(20)), None);
    }
}
