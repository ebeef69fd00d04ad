//! A destination as its source sees it: where its blobs go, and whether it keeps up.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{destination::Delivery, fanout::Waits, lag::Lag};
use crate::region::Error;

/// How often it is looked whether others wait for a destination that has no room.
const SHORTEST_STEP: Duration = Duration::from_millis(1);
const LONGEST_STEP: Duration = Duration::from_millis(10);

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

/// A wait for room at a destination, in short steps.
#[derive(Debug)]
pub struct Waiting<'a> {
    member: &'a Member,
    waits: Waits,
    began: Instant,
    since: Instant,
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

    /// Starts to wait for room at the destination.
    pub fn wait(&self, waits: Waits) -> Waiting<'_> {
        let now = Instant::now();
        Waiting { member: self, waits, began: now, since: now }
    }

    /// Whether it has taken everything that it was given.
    pub fn is_idle(&self) -> bool {
        self.sender().as_ref().is_some_and(|deliveries| deliveries.capacity() == deliveries.max_capacity())
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

    /// Gives it a blob to come. One that is still busy with those before may be left behind.
    pub async fn deliver(&self, delivery: Delivery, waits: Waits, others_wait: impl Fn() -> bool) -> bool {
        let Some(sender) = self.sender().clone() else { return false };
        let mut waiting = self.wait(waits);
        loop {
            let reserved = timeout(waiting.step(), sender.reserve()).await;
            let goes_on = waiting.has_waited(others_wait());
            match reserved {
                Ok(Ok(room)) => {
                    room.send(delivery);
                    return true;
                }
                Ok(Err(_)) => return false,
                Err(_) if goes_on => {}
                Err(_) => {
                    self.leave_behind();
                    return false;
                }
            }
        }
    }
}

impl Waiting<'_> {
    /// How long to wait before it is looked again whether others wait too.
    pub fn step(&mut self) -> Duration {
        self.since = Instant::now();
        let left = self.member.lag().left(self.waits.patience, self.since);
        left.max(SHORTEST_STEP).min(LONGEST_STEP).min(self.waits.stall)
    }

    /// A step has ended. `others_wait` says whether others have nothing to do meanwhile. Returns whether it may be waited any longer: the
    /// destination may keep others waiting for as long as its lag allows, and may take nothing at all for `waits.stall`.
    pub fn has_waited(&self, others_wait: bool) -> bool {
        let now = Instant::now();
        let mut lag = self.member.lag();
        if others_wait {
            lag.kept_waiting(self.since, now);
        }
        let too_slow = others_wait && lag.left(self.waits.patience, now).is_zero();
        !too_slow && now.duration_since(self.began) < self.waits.stall
    }
}
