//! The section `[worker]`: how workers copy images.

use std::time::Duration;

use serde::Deserialize;

use super::{Error, invalid, positive};
use crate::domain::{Backoff, RegionId, Regions};

/// `[worker]`: how images are copied.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// The regions that this process copies to; all if empty.
    pub regions: Vec<String>,
    /// The limit of concurrent copies into each region. Copies into one region do not count for another.
    pub concurrency: usize,
    /// How long a claim is valid without a renewal, in milliseconds.
    pub lease_ms: u64,
    /// The interval at which claims are renewed and progress is stored, in milliseconds; at most a third of `lease_ms`.
    pub heartbeat_ms: u64,
    /// The interval between two polls for work without a notification, in milliseconds.
    pub poll_ms: u64,
    /// How long a region may keep the other regions of its image waiting, in milliseconds; never more than a tenth of
    /// the duration of the copy.
    pub patience_ms: u64,
    /// How long a copy may make no progress before the attempt is aborted, in milliseconds.
    pub stall_ms: u64,
    /// The number of attempts after transient faults. The default covers an outage of more than an hour.
    pub attempts: u32,
    /// The wait after the first fault, in milliseconds. It doubles with each fault.
    pub retry_first_ms: u64,
    /// The longest wait between attempts, in milliseconds.
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
    /// Rejects invalid values.
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
            return Err(invalid("worker.heartbeat_ms", "must be at most a third of worker.lease_ms"));
        }
        Ok(())
    }

    /// Returns the number of attempts and the waits between them.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff {
            first: Duration::from_millis(self.retry_first_ms),
            longest: Duration::from_millis(self.retry_longest_ms),
            attempts: self.attempts,
        }
    }

    /// Returns the regions that the worker of this process copies to.
    pub fn served(&self, regions: &Regions) -> Result<Vec<RegionId>, Error> {
        if self.regions.is_empty() {
            return Ok(regions.iter().cloned().collect());
        }
        let parse = |name: &String| {
            let id: RegionId = name.parse().map_err(|error| invalid("worker.regions", error))?;
            if regions.contains(&id) {
                Ok(id)
            } else {
                Err(invalid("worker.regions", format!("{id} is not one of [[region]]")))
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
        // The maximum jitter gives the shortest waits.
        let waits: Vec<Duration> = (0..).map_while(|faults| backoff.wait(faults, 1.0)).collect();
        assert!(waits.iter().sum::<Duration>() > Duration::from_secs(3_600), "{waits:?}");
        let longest = (0..).map_while(|faults| backoff.wait(faults, 0.0)).max();
        assert_eq!(longest, Some(Duration::from_millis(worker.retry_longest_ms)));
    }
}
