//! The progress counter of a copy, which is used to detect a stalled copy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Counts the steps of progress of one copy. During a long operation, such as hashing a large file, a store calls
/// [`tick`](Self::tick) repeatedly. A copy without a tick for `worker.stall_ms` is aborted.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<AtomicU64>);

impl Activity {
    /// Records progress.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of ticks so far. Only the difference between two counts is meaningful.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits until there has been no tick for `stall`.
    pub async fn silence(&self, stall: Duration) {
        let mut seen = self.count();
        let mut since = Instant::now();
        loop {
            // Checked four times per `stall`, so that the wait ends at most a quarter of `stall` late.
            sleep_until((since + stall).min(Instant::now() + stall / 4)).await;
            let count = self.count();
            if count != seen {
                (seen, since) = (count, Instant::now());
            } else if since.elapsed() >= stall {
                return;
            }
        }
    }

    /// Ticks while `wait` is pending, so that a wait that is not the store's fault, for example for bytes from the
    /// source, does not count as a stall.
    pub async fn excused<T>(&self, stall: Duration, wait: impl Future<Output = T>) -> T {
        tokio::pin!(wait);
        loop {
            match tokio::time::timeout(stall / 4, wait.as_mut()).await {
                Ok(done) => return done,
                Err(_) => self.tick(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep, timeout};

    use super::Activity;

    const STALL: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn only_silence_is_a_stall() {
        let activity = Activity::default();
        let work = async {
            for _ in 0..10 {
                sleep(STALL / 2).await;
                activity.tick();
            }
        };
        let start = Instant::now();
        let ((), ()) = tokio::join!(work, activity.silence(STALL));
        let silent = start.elapsed().saturating_sub(STALL * 5);
        assert!(silent >= STALL && silent <= STALL * 3 / 2, "{silent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_source_is_no_silence_of_the_store() {
        let activity = Activity::default();
        let wait = activity.excused(STALL, sleep(STALL * 5));
        tokio::select! {
            () = wait => {}
            () = activity.silence(STALL) => panic!("it waited for the source"),
        }
        assert!(timeout(STALL * 2, activity.silence(STALL)).await.is_ok());
    }
}
