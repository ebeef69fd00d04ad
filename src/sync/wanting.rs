//! A destination as the source of its pass sees it: what it lacks, and whether it keeps up.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tokio_util::sync::CancellationToken;

use super::destination::Delivery;
use crate::domain::{Descriptor, Digest, RegionId};

/// A destination as its group's source sees it.
#[derive(Debug)]
pub struct Wanting {
    /// Its region.
    pub region: RegionId,
    lacking: HashSet<Digest>,
    /// Nothing once it has been left behind.
    deliveries: Mutex<Option<mpsc::Sender<Delivery>>>,
    /// Canceled when it is left behind.
    left: CancellationToken,
}

impl Wanting {
    /// A destination that lacks some blobs and takes them from `deliveries`.
    pub fn new(region: RegionId, lacking: HashSet<Digest>, deliveries: mpsc::Sender<Delivery>) -> Self {
        Self { region, lacking, deliveries: Mutex::new(Some(deliveries)), left: CancellationToken::new() }
    }

    /// Canceled when it is left behind.
    pub fn left(&self) -> CancellationToken {
        self.left.clone()
    }

    /// Whether it lacks the blob.
    pub fn lacks(&self, blob: &Descriptor) -> bool {
        self.lacking.contains(&blob.digest)
    }

    /// The place holds nothing that a panic could leave half-done.
    fn place(&self) -> MutexGuard<'_, Option<mpsc::Sender<Delivery>>> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
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
