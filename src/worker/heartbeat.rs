//! Keeps the claims of a copy job alive, and notices which of them are no longer its own.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::transfer::Meter;
use crate::{
    domain::{ImageId, RegionId},
    state::State,
};

/// A claim that is being worked on.
#[derive(Debug, Clone)]
pub struct HeldClaim {
    /// The region.
    pub region: RegionId,
    /// The fence of the claim.
    pub fence: u64,
    /// How far its copy has come.
    pub meter: Arc<Meter>,
}

/// When claims are renewed.
#[derive(Debug)]
pub struct Heartbeat {
    image: ImageId,
    lease: Duration,
    interval: Duration,
    next: Instant,
    renewed: Instant,
}

impl Heartbeat {
    /// The heartbeat of claims that were made just now.
    pub fn new(image: ImageId, lease: Duration, interval: Duration) -> Self {
        let now = Instant::now();
        Self { image, lease, interval, next: now + interval, renewed: now }
    }

    /// Waits for the next beat and renews the claims. May be given up at any moment and called again: the beat does not move
    /// by that, however often other things happen. Returns those that are lost: they moved on, or could not be renewed for
    /// so long that they may have run out.
    pub async fn beat(&mut self, state: &State, held: &[HeldClaim]) -> Vec<RegionId> {
        tokio::time::sleep_until(self.next).await;
        let claims: Vec<_> = held.iter().map(|h| (h.region.clone(), h.fence, h.meter.read())).collect();
        let started = Instant::now();
        let renewed = state.replica_renew(&self.image, self.lease, &claims).await;
        self.next = Instant::now() + self.interval;
        match renewed {
            Ok(lost) => {
                self.renewed = started;
                lost
            }
            Err(error) if self.renewed.elapsed() >= self.lease => {
                tracing::warn!(%error, image = %self.image, "lease expired: it could not be renewed in time");
                held.iter().map(|h| h.region.clone()).collect()
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

    use super::Heartbeat;
    use crate::state::embedded::Embedded;

    /// Regions that end one after the other interrupt the wait for the beat; it must come all the same.
    #[tokio::test]
    async fn a_beat_that_is_interrupted_comes_in_its_time() {
        let embedded = Embedded::open([], |settings| settings).await;
        let interval = Duration::from_millis(100);
        let mut heartbeat = Heartbeat::new("a".parse().expect("an id"), interval * 10, interval);
        let three_beats = async {
            let mut beats = 0;
            while beats < 3 {
                if tokio::time::timeout(interval / 3, heartbeat.beat(&embedded.state, &[])).await.is_ok() {
                    beats += 1;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), three_beats).await.expect("the beats come");
        embedded.end().await;
    }
}
