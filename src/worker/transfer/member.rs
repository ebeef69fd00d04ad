//! A destination as its source sees it: where its blobs go, and whether it keeps up.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{destination::Delivery, lag::Lag};
use crate::region::Error;

/// A destination of a fan-out.
#[derive(Debug)]
pub struct Member {
    /// Nothing once it has been left behind.
    deliveries: Mutex<Option<mpsc::Sender<Delivery>>>,
    /// Canceled when it is left behind.
    left: CancellationToken,
    lag: Mutex<Lag>,
    /// Why the source could not send what it was to get.
    failure: OnceLock<Arc<Error>>,
}

impl Member {
    /// A destination that takes its blobs from `deliveries`.
    pub fn new(deliveries: mpsc::Sender<Delivery>) -> Self {
        Self {
            deliveries: Mutex::new(Some(deliveries)),
            left: CancellationToken::new(),
            lag: Mutex::new(Lag::new(Instant::now())),
            failure: OnceLock::new(),
        }
    }

    fn sender(&self) -> MutexGuard<'_, Option<mpsc::Sender<Delivery>>> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lag(&self) -> MutexGuard<'_, Lag> {
        self.lag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much longer it may keep the others waiting.
    pub fn patience_left(&self, patience: Duration, now: Instant) -> Duration {
        self.lag().left(patience, now)
    }

    /// It kept the others waiting.
    pub fn kept_waiting(&self, since: Instant, now: Instant) {
        self.lag().kept_waiting(since, now);
    }

    /// Leaves it behind: it gets no more.
    pub fn leave_behind(&self) {
        self.left.cancel();
        self.close();
    }

    /// Resolves when it is left behind.
    pub async fn left_behind(&self) {
        self.left.cancelled().await;
    }

    /// Sends it no more.
    pub fn close(&self) {
        self.sender().take();
    }

    /// The source failed while it sent something to it.
    pub fn fail(&self, error: Arc<Error>) {
        // The first failure is the reason for the others.
        let _ = self.failure.set(error);
    }

    /// Why the source failed it.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.failure.get().cloned()
    }

    /// Gives it a blob to come, if it takes it in time. One that is still busy with those before is left behind.
    pub async fn deliver(&self, delivery: Delivery, patience: Duration) -> bool {
        let Some(sender) = self.sender().clone() else { return false };
        match sender.send_timeout(delivery, patience).await {
            Ok(()) => true,
            Err(SendTimeoutError::Closed(_)) => false,
            Err(SendTimeoutError::Timeout(_)) => {
                self.leave_behind();
                false
            }
        }
    }
}
