//! A destination as the source of its pass sees it: what it lacks, and whether it keeps up.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{destination::Delivery, lag::Lag};
use crate::domain::{Descriptor, Digest, RegionId, Verification};

/// What a destination lacks.
#[derive(Debug, Clone, Default)]
pub struct Lacking {
    /// The blobs, and how many of the first bytes of each it has.
    pub blobs: HashMap<Digest, u64>,
    /// Nothing at all: the image is there and visible.
    pub nothing: bool,
    /// How it is known that what it does not lack is there.
    pub verification: Verification,
}

/// A destination as its group's source sees it.
#[derive(Debug)]
pub struct Wanting {
    /// Its region.
    pub region: RegionId,
    lacking: Lacking,
    /// Nothing once it has been left behind.
    deliveries: Mutex<Option<mpsc::Sender<Delivery>>>,
    /// Canceled when it is left behind.
    left: CancellationToken,
    lag: Mutex<Lag>,
}

impl Wanting {
    /// A destination that lacks some blobs and takes them from `deliveries`.
    pub fn new(region: RegionId, lacking: Lacking, deliveries: mpsc::Sender<Delivery>) -> Self {
        let lag = Mutex::new(Lag::new(Instant::now()));
        Self { region, lacking, deliveries: Mutex::new(Some(deliveries)), left: CancellationToken::new(), lag }
    }

    /// Canceled when it is left behind.
    pub fn left(&self) -> CancellationToken {
        self.left.clone()
    }

    /// How many of the blob's first bytes it has, if it lacks the rest.
    pub fn lacks(&self, blob: &Descriptor) -> Option<u64> {
        self.lacking.blobs.get(&blob.digest).copied()
    }

    /// The place holds nothing that a panic could leave half-done.
    fn place(&self) -> MutexGuard<'_, Option<mpsc::Sender<Delivery>>> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lag(&self) -> MutexGuard<'_, Lag> {
        self.lag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much longer it may keep the others waiting.
    pub fn patience_left(&self, patience: Duration, now: Instant) -> Duration {
        patience.saturating_sub(self.lag().owed_at(now))
    }

    /// It kept the others waiting.
    pub fn kept_waiting(&self, since: Instant, now: Instant) {
        self.lag().kept_waiting(since, now);
    }

    /// Whether it takes deliveries: it has neither ended nor been left behind.
    pub fn takes_part(&self) -> bool {
        self.place().as_ref().is_some_and(|deliveries| !deliveries.is_closed())
    }

    /// Leaves it behind: it gets no more.
    pub fn leave(&self) {
        self.left.cancel();
        self.place().take();
    }

    /// Gives it a blob to come, if it takes it in time. One that is still busy with those before is left behind.
    pub async fn deliver(&self, delivery: Delivery, patience: Duration) -> bool {
        let Some(sender) = self.place().clone() else { return false };
        match sender.send_timeout(delivery, patience).await {
            Ok(()) => true,
            Err(SendTimeoutError::Closed(_)) => false,
            Err(SendTimeoutError::Timeout(_)) => {
                self.leave();
                false
            }
        }
    }
}
