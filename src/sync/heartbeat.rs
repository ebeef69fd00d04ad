//! Keeps the claims of a pass alive, and notices which of them are no longer its own.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::destination::Meter;
use crate::{
    domain::{ImageId, RegionId},
    state::State,
};

/// A claim that is being worked on.
#[derive(Debug, Clone)]
pub struct Held {
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
    renewed: Instant,
}

impl Heartbeat {
    /// The heartbeat of claims that were made just now.
    pub fn new(image: ImageId, lease: Duration, interval: Duration) -> Self {
        Self { image, lease, interval, renewed: Instant::now() }
    }

    /// Waits for the next beat and renews the claims. Returns those that are lost: they moved on, or could not be renewed for
    /// so long that they may have run out.
    pub async fn beat(&mut self, state: &State, held: &[Held]) -> Vec<RegionId> {
        tokio::time::sleep(self.interval).await;
        let claims: Vec<_> = held.iter().map(|h| (h.region.clone(), h.fence, h.meter.read())).collect();
        let started = Instant::now();
        match state.replica_renew(&self.image, self.lease, &claims).await {
            Ok(lost) => {
                self.renewed = started;
                lost
            }
            Err(error) if self.renewed.elapsed() >= self.lease => {
                tracing::warn!(%error, image = %self.image, "leases could not be renewed and have run out");
                held.iter().map(|h| h.region.clone()).collect()
            }
            Err(error) => {
                tracing::warn!(%error, image = %self.image, "leases can't be renewed for now");
                Vec::new()
            }
        }
    }
}
