//! `[worker]`.

use std::time::Duration;

use serde::Deserialize;

use super::{Error, positive, value};
use crate::domain::{Backoff, RegionId, Regions};

/// `[worker]`: how images are carried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// The regions that are served; all if none is named.
    pub regions: Vec<String>,
    /// Images that are copied into each region at the same time. A region's copies take nothing from another region.
    pub concurrency: usize,
    /// How long a claim is good for without a sign of life, in milliseconds.
    pub lease_ms: u64,
    /// How often a sign of life is given and progress is written down, in milliseconds.
    pub heartbeat_ms: u64,
    /// How often to look for work without being told of any, in milliseconds.
    pub poll_ms: u64,
    /// How long a region may keep the others of its image waiting at most, in milliseconds; never more than a tenth of the time that the
    /// copy has taken.
    pub patience_ms: u64,
    /// How long a copy may show no progress before the attempt is given up, in milliseconds, whatever it waits for.
    pub stall_ms: u64,
    /// How many attempts may end with a fault that may pass. By default they cover an outage of more than an hour.
    pub attempts: u32,
    /// The wait after the first fault, in milliseconds. It doubles from there.
    pub retry_first_ms: u64,
    /// The longest wait, in milliseconds.
    pub retry_longest_ms: u64,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            concurrency: 4,
            lease_ms: 15_000,
            heartbeat_ms: 500,
            poll_ms: 1_000,
            patience_ms: 2_000,
            stall_ms: 60_000,
            attempts: 40,
            retry_first_ms: 1_000,
            retry_longest_ms: 300_000,
        }
    }
}

impl Worker {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        positive(
            "worker",
            &[
                ("concurrency", self.concurrency as u64),
                ("lease_ms", self.lease_ms),
                ("heartbeat_ms", self.heartbeat_ms),
                ("poll_ms", self.poll_ms),
                ("patience_ms", self.patience_ms),
                ("stall_ms", self.stall_ms),
                ("attempts", self.attempts.into()),
                ("retry_first_ms", self.retry_first_ms),
                ("retry_longest_ms", self.retry_longest_ms),
            ],
        )?;
        if self.heartbeat_ms.saturating_mul(3) > self.lease_ms {
            return Err(value("worker.heartbeat_ms", "it must be at most a third of worker.lease_ms"));
        }
        Ok(())
    }

    /// How often, and after which waits, a copy is retried.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff {
            first: Duration::from_millis(self.retry_first_ms),
            longest: Duration::from_millis(self.retry_longest_ms),
            attempts: self.attempts,
        }
    }

    /// The regions that this process's workers serve.
    pub fn served(&self, regions: &Regions) -> Result<Vec<RegionId>, Error> {
        if self.regions.is_empty() {
            return Ok(regions.iter().cloned().collect());
        }
        let parse = |name: &String| {
            let id: RegionId = name.parse().map_err(|error| value("worker.regions", error))?;
            if regions.contains(&id) {
                Ok(id)
            } else {
                Err(value("worker.regions", format!("{id} is not one of [[region]]")))
            }
        };
        self.regions.iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Worker;

    #[test]
    fn an_outage_of_an_hour_costs_no_copy_by_default() {
        let worker = Worker::default();
        let backoff = worker.backoff();
        // With the most jitter, the waits are at their shortest.
        let waits: Vec<Duration> = (0..).map_while(|faults| backoff.wait(faults, 1.0)).collect();
        assert!(waits.iter().sum::<Duration>() > Duration::from_secs(3_600), "{waits:?}");
        let longest = (0..).map_while(|faults| backoff.wait(faults, 0.0)).max();
        assert_eq!(longest, Some(Duration::from_millis(worker.retry_longest_ms)));
    }
}
