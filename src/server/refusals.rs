//! Calls whose credentials prove nothing. They are counted by source: one that fails too often is told to wait, whatever it shows that is
//! wrong; what is right is never asked about. Each is a line of the audit log, until there are too many: then a source's are counted,
//! and told in one line a second.

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

use super::rate::{Rate, Spent};
use crate::{
    audit::{Audit, Summary},
    domain::Clock,
    metrics,
};

/// The most sources that are remembered, those that failed last.
const SOURCES: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not 0");
/// Refusals a second, of all sources together, that are a line each.
const LINES_PER_SECOND: u32 = 100;
/// How often what was counted is told.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most sources that are told by name each time; the others are told together.
const NAMED: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Refusals {
    rate: Rate,
    audit: Audit,
    clock: Clock,
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Counted {
    sources: LruCache<IpAddr, Spent>,
    lines: Spent,
    /// What has not been told yet, by source.
    untold: HashMap<IpAddr, u64>,
    /// The same, of sources for which there was no room.
    others: u64,
}

/// What becomes of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is a line of the audit log.
    Line,
    /// It was counted.
    Counted,
    /// It was counted, and its source has to wait for so long.
    Throttled(Duration),
}

impl Refusals {
    /// So many of a source may fail a minute, and as many at once.
    #[must_use]
    pub fn new(per_minute: u32, audit: Audit, clock: Clock) -> Self {
        let counted =
            Counted { sources: LruCache::new(SOURCES), lines: Spent::default(), untold: HashMap::new(), others: 0 };
        Self { rate: Rate::new(per_minute, Duration::from_secs(60)), audit, clock, counted: Mutex::new(counted) }
    }

    /// A source's credential proved nothing.
    pub fn refused(&self, source: IpAddr, now: Instant) -> Refused {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let throttled = counted.sources.get_or_insert_mut(source, Spent::default).take(self.rate, now).err();
        if throttled.is_none() && counted.lines.take(Rate::new(LINES_PER_SECOND, INTERVAL), now).is_ok() {
            return Refused::Line;
        }
        if counted.untold.len() < NAMED || counted.untold.contains_key(&source) {
            *counted.untold.entry(source).or_default() += 1;
        } else {
            counted.others += 1;
        }
        throttled.map_or(Refused::Counted, Refused::Throttled)
    }

    /// Tells what was counted, every second, until `stop` is canceled, and once more then.
    pub async fn run(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            self.tell();
        }
        self.tell();
    }

    fn tell(&self) {
        let (untold, others) = {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            (mem::take(&mut counted.untold), mem::take(&mut counted.others))
        };
        let time = self.clock.now();
        let named = untold.into_iter().map(|(source, refused)| (Some(source), refused));
        for (source_ip, refused) in named.chain((others > 0).then_some((None, others))) {
            self.write(&Summary { time, source_ip, refused });
        }
    }

    fn write(&self, summary: &Summary) {
        // It waits for no room: where there is none, calls are refused, and what is lost is told by the metric.
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

    use super::{LINES_PER_SECOND, NAMED, Refusals, Refused};
    use crate::audit::{Audit, Destination};

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// What is written by the end of what `act` does.
    async fn written(per_minute: u32, act: impl FnOnce(&Refusals)) -> Vec<serde_json::Value> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("audit.log");
        let (audit, writing) = Audit::start(Destination::File(file.clone()), 1.0).expect("a log");
        let refusals = Refusals::new(per_minute, audit, crate::system_clock());
        act(&refusals);
        let stop = CancellationToken::new();
        stop.cancel();
        refusals.run(stop).await;
        drop(refusals);
        writing.await.expect("it ends");
        let text = std::fs::read_to_string(file).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[tokio::test]
    async fn who_fails_too_often_waits_and_is_told_in_one_line() {
        let lines = written(3, |refusals| {
            let now = Instant::now();
            for _ in 0..3 {
                assert_eq!(refusals.refused(address(1), now), Refused::Line);
            }
            for _ in 0..5 {
                assert_eq!(refusals.refused(address(1), now), Refused::Throttled(Duration::from_secs(20)));
            }
            assert_eq!(refusals.refused(address(2), now), Refused::Line, "another one is not asked to wait");
            assert_eq!(refusals.refused(address(1), now + Duration::from_secs(20)), Refused::Line);
        })
        .await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!((&lines[0]["refused"], &lines[0]["source_ip"]), (&5.into(), &"192.0.2.1".into()));
        assert_eq!(lines[0]["decision"], "deny");
    }

    #[tokio::test]
    async fn many_sources_write_no_more_lines_than_a_few() {
        let lines = written(1_000, |refusals| {
            let now = Instant::now();
            let refused: Vec<_> = (0..=u8::MAX).map(|last| refusals.refused(address(last), now)).collect();
            let lines = refused.iter().filter(|refused| **refused == Refused::Line).count();
            assert_eq!(lines, LINES_PER_SECOND as usize);
            assert!(refused.contains(&Refused::Counted));
        })
        .await;
        assert_eq!(lines.len(), NAMED + 1, "those that are named, and one for the others");
        let told: u64 = lines.iter().filter_map(|line| line["refused"].as_u64()).sum();
        assert_eq!(told, 256 - u64::from(LINES_PER_SECOND), "none is missing");
    }
}
