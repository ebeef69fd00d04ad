//! Brute-force protection: throttles source addresses after repeated authentication failures. Calls with a valid
//! credential are never throttled.
//!
//! Up to a rate, every failure gets a record of its own in the audit log. Further failures are counted, and recorded in
//! one line per source and second.

use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lru::LruCache;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rate::{Rate, RateLimiter};
use crate::{
    audit::{Audit, RejectionSummary},
    domain::Clock,
    metrics,
};

/// Maximum number of sources with a failure count. The least recently used are forgotten.
const MAX_SOURCES: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not 0");
/// Failures per second, of all sources together, that have a record of their own.
const RECORDS_PER_SECOND: u32 = 100;
/// Interval of the summaries.
const INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of sources with a line of their own in each summary. All other sources share one line.
const MAX_SUMMARIZED_SOURCES: usize = 64;

/// Counts authentication failures by source address.
#[derive(Debug)]
pub struct AuthThrottle {
    rate: Rate,
    audit: Audit,
    clock: Clock,
    failures: Mutex<Failures>,
}

#[derive(Debug)]
struct Failures {
    sources: LruCache<IpAddr, RateLimiter>,
    records: RateLimiter,
    /// Failures without a record since the last summary, by source.
    summary: HashMap<IpAddr, u64>,
    /// Failures without a record since the last summary, of all sources beyond [`MAX_SUMMARIZED_SOURCES`].
    other_sources: u64,
}

/// How a failed attempt is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedAttempt {
    /// The attempt gets a record of its own in the audit log.
    Logged,
    /// The attempt is counted in the next summary.
    Counted,
    /// The attempt is counted in the next summary, and its source has to wait for this long.
    Throttled(Duration),
}

impl AuthThrottle {
    /// Allows `per_minute` failures per source and minute, which may come in one burst.
    #[must_use]
    pub fn new(per_minute: u32, audit: Audit, clock: Clock) -> Self {
        let failures = Failures {
            sources: LruCache::new(MAX_SOURCES),
            records: RateLimiter::default(),
            summary: HashMap::new(),
            other_sources: 0,
        };
        Self { rate: Rate::new(per_minute, Duration::from_secs(60)), audit, clock, failures: Mutex::new(failures) }
    }

    /// Counts a failed authentication of a source.
    pub fn record_failure(&self, source: IpAddr, now: Instant) -> FailedAttempt {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let throttled =
            failures.sources.get_or_insert_mut(source, RateLimiter::default).try_acquire(self.rate, now).err();
        if throttled.is_none() && failures.records.try_acquire(Rate::new(RECORDS_PER_SECOND, INTERVAL), now).is_ok() {
            return FailedAttempt::Logged;
        }
        if failures.summary.len() < MAX_SUMMARIZED_SOURCES || failures.summary.contains_key(&source) {
            *failures.summary.entry(source).or_default() += 1;
        } else {
            failures.other_sources += 1;
        }
        throttled.map_or(FailedAttempt::Counted, FailedAttempt::Throttled)
    }

    /// Writes a summary every second, and a final one when `stop` is canceled.
    pub async fn run(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            self.summarize();
        }
        self.summarize();
    }

    fn summarize(&self) {
        let (summary, other_sources) = {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            (mem::take(&mut failures.summary), mem::take(&mut failures.other_sources))
        };
        let time = self.clock.now();
        let by_source = summary.into_iter().map(|(source, refused)| (Some(source), refused));
        for (source_ip, refused) in by_source.chain((other_sources > 0).then_some((None, other_sources))) {
            self.write(&RejectionSummary { time, source_ip, refused });
        }
    }

    fn write(&self, summary: &RejectionSummary) {
        // Does not wait for room in the queue, because calls are rejected anyway while it is full. A lost line is
        // counted.
        if self.audit.summarize(summary).is_some() {
            metrics::record_lost_decisions(summary.refused);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::{AuthThrottle, FailedAttempt, MAX_SUMMARIZED_SOURCES, RECORDS_PER_SECOND};
    use crate::audit::{Audit, Destination};

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// Returns the lines of the audit log after `act`.
    async fn written(per_minute: u32, act: impl FnOnce(&AuthThrottle)) -> Vec<serde_json::Value> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("audit.log");
        let (audit, writing) = Audit::start(Destination::File(file.clone()), 1.0).expect("a log");
        let throttle = AuthThrottle::new(per_minute, audit, crate::system_clock());
        act(&throttle);
        let stop = CancellationToken::new();
        stop.cancel();
        throttle.run(stop).await;
        drop(throttle);
        writing.await.expect("the writer ends");
        let text = std::fs::read_to_string(file).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[tokio::test]
    async fn a_source_that_fails_too_often_is_throttled_and_summarized() {
        let lines = written(3, |throttle| {
            let now = Instant::now();
            for _ in 0..3 {
                assert_eq!(throttle.record_failure(address(1), now), FailedAttempt::Logged);
            }
            for _ in 0..5 {
                assert_eq!(throttle.record_failure(address(1), now), FailedAttempt::Throttled(Duration::from_secs(20)));
            }
            assert_eq!(
                throttle.record_failure(address(2), now),
                FailedAttempt::Logged,
                "other sources are not throttled"
            );
            assert_eq!(throttle.record_failure(address(1), now + Duration::from_secs(20)), FailedAttempt::Logged);
        })
        .await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!((&lines[0]["refused"], &lines[0]["source_ip"]), (&5.into(), &"192.0.2.1".into()));
        assert_eq!(lines[0]["decision"], "deny");
    }

    #[tokio::test]
    async fn records_of_all_sources_together_are_limited() {
        let lines = written(1_000, |throttle| {
            let now = Instant::now();
            let attempts: Vec<_> = (0..=u8::MAX).map(|last| throttle.record_failure(address(last), now)).collect();
            let records = attempts.iter().filter(|attempt| **attempt == FailedAttempt::Logged).count();
            assert_eq!(records, RECORDS_PER_SECOND as usize);
            assert!(attempts.contains(&FailedAttempt::Counted));
        })
        .await;
        assert_eq!(
            lines.len(),
            MAX_SUMMARIZED_SOURCES + 1,
            "the sources with a line of their own, and one for the others"
        );
        let summarized: u64 = lines.iter().filter_map(|line| line["refused"].as_u64()).sum();
        assert_eq!(summarized, 256 - u64::from(RECORDS_PER_SECOND), "no failure is missing");
    }
}
