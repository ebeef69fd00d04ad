//! Renews the leases of a copy job and detects lost claims.

use std::{sync::Arc, time::Duration};

use db::Db;
use domain::{ImageId, RegionId};
use tokio::time::Instant;

use super::transfer::Meter;

/// A claim whose lease is renewed.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct LeasedCopy {
    pub region: RegionId,
    /// The fence of the claim.
    pub fence: u64,
    /// The progress of the copy, which is stored with each renewal.
    pub meter: Arc<Meter>,
}

/// Schedules the renewals of a job's claims.
#[derive(Debug)]
pub struct Heartbeat {
    image: ImageId,
    lease: Duration,
    interval: Duration,
    next: Instant,
    renewed: Instant,
}

impl Heartbeat {
    /// Creates the heartbeat of claims that were just acquired.
    pub fn new(image: ImageId, lease: Duration, interval: Duration) -> Self {
        let now = Instant::now();
        Self { image, lease, interval, next: now + interval, renewed: now }
    }

    /// Waits for the next beat and renews the leases. Returns the claims that are lost: canceled, taken over, or not
    /// renewed within the lease. Cancel safe: the time of the next beat does not move.
    pub async fn beat(&mut self, state: &Db, copies: &[LeasedCopy]) -> Vec<RegionId> {
        tokio::time::sleep_until(self.next).await;
        let claims: Vec<_> = copies.iter().map(|copy| (copy.region.clone(), copy.fence, copy.meter.read())).collect();
        let start = Instant::now();
        let renewed = state.replica_renew(&self.image, self.lease, &claims).await;
        self.next = Instant::now() + self.interval;
        match renewed {
            Ok(lost) => {
                self.renewed = start;
                lost
            }
            Err(error) if self.renewed.elapsed() >= self.lease => {
                tracing::warn!(%error, image = %self.image, "lease expired: failed to renew it in time; stopping the copies");
                copies.iter().map(|copy| copy.region.clone()).collect()
            }
            Err(error) => {
                tracing::warn!(%error, image = %self.image, "failed to renew leases; will retry");
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use db::{Db, Settings};
    use domain::Regions;
    use tokio_util::sync::CancellationToken;

    use super::Heartbeat;

    /// Regions that finish one after the other cancel the wait for the beat. The beat must still come on time.
    #[tokio::test]
    async fn a_beat_that_is_interrupted_comes_in_its_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings::new(format!("sqlite://{}/state.db", directory.path().display()));
        db::migrate(&settings).await.expect("the schema");
        let (regions, stop) = (Regions::new("home".parse().expect("an id"), []), CancellationToken::new());
        let (db, tasks) = Db::open(&settings, regions, stop.clone()).await.expect("a database");
        let interval = Duration::from_millis(100);
        let mut heartbeat = Heartbeat::new("a".parse().expect("an id"), interval * 10, interval);
        let three_beats = async {
            let mut beats = 0;
            while beats < 3 {
                if tokio::time::timeout(interval / 3, heartbeat.beat(&db, &[])).await.is_ok() {
                    beats += 1;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), three_beats).await.expect("the beats come");
        stop.cancel();
        tasks.join().await;
    }
}
