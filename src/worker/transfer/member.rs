//! A destination as its source sees it: where its blobs go, and whether it keeps up.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    time::Instant,
};

use super::{
    byte_channel::{ChunkSender, Room},
    destination::Delivery,
    lag::Lag,
    schedule::MemberId,
};
use crate::{domain::RegionId, region::Error};

/// How often it is looked whether others wait for a destination that has no room.
const SHORTEST_STEP: Duration = Duration::from_millis(1);
const LONGEST_STEP: Duration = Duration::from_millis(10);

/// A destination of a fan-out.
#[derive(Debug)]
pub struct Member {
    /// Its number in the fan-out.
    pub id: MemberId,
    /// The region.
    pub region: RegionId,
    /// Nothing once it is sent no more.
    deliveries: Mutex<Option<mpsc::Sender<Delivery>>>,
    /// Where it has room for the blobs that it is being sent.
    rooms: Mutex<Vec<Room>>,
    lag: Mutex<Lag>,
    /// How long others wait for it at once, at the longest.
    patience: Duration,
    /// Why the source could not send what it was to get.
    failure: OnceLock<Arc<Error>>,
    /// Blobs that the source could not send, by their places, and without which the image is whole.
    lost: Mutex<BTreeMap<usize, Arc<Error>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Member {
    /// A destination that takes its blobs from `deliveries`.
    pub fn new(id: MemberId, region: RegionId, deliveries: mpsc::Sender<Delivery>, patience: Duration) -> Self {
        Self {
            id,
            region,
            deliveries: Mutex::new(Some(deliveries)),
            rooms: Mutex::default(),
            lag: Mutex::new(Lag::new(Instant::now())),
            patience,
            failure: OnceLock::new(),
            lost: Mutex::default(),
        }
    }

    /// Whether it has taken everything that it was given.
    pub fn is_idle(&self) -> bool {
        let taken = |deliveries: &mpsc::Sender<_>| deliveries.capacity() == deliveries.max_capacity();
        locked(&self.deliveries).as_ref().is_some_and(taken) && locked(&self.rooms).iter().all(Room::is_free)
    }

    /// Sends it no more.
    pub fn close(&self) {
        locked(&self.deliveries).take();
    }

    /// Resolves when it takes no more.
    pub async fn gone(&self) {
        let deliveries = locked(&self.deliveries).clone();
        if let Some(deliveries) = deliveries {
            deliveries.closed().await;
        }
    }

    /// The source failed while it sent something to it.
    pub fn fail(&self, error: Arc<Error>) {
        // The first failure is the reason for the others.
        let _ = self.failure.set(error);
    }

    /// The source can't send a blob without which the image is whole.
    pub fn lose(&self, blob: usize, error: Arc<Error>) {
        locked(&self.lost).insert(blob, error);
    }

    /// Why the source can't send a blob without which the image is whole.
    pub fn lost(&self, blob: usize) -> Option<Arc<Error>> {
        locked(&self.lost).get(&blob).cloned()
    }

    /// Why the source failed it.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.failure.get().cloned()
    }

    /// Gives it a blob to come, which it gets by `chunks`, and waits for at most a step until it has room. The delivery comes back if it has
    /// none; false if it takes no more.
    pub async fn deliver(&self, delivery: Delivery, chunks: &ChunkSender) -> Result<bool, Delivery> {
        let Some(sender) = locked(&self.deliveries).clone() else { return Ok(false) };
        match sender.send_timeout(delivery, self.step()).await {
            Ok(()) => {
                let mut rooms = locked(&self.rooms);
                rooms.retain(|room| !room.is_gone());
                rooms.push(chunks.room());
                Ok(true)
            }
            Err(SendTimeoutError::Timeout(delivery)) => Err(delivery),
            Err(SendTimeoutError::Closed(_)) => Ok(false),
        }
    }

    /// How long to wait for room before it is looked whether others wait too.
    pub fn step(&self) -> Duration {
        locked(&self.lag).left(self.patience, Instant::now()).clamp(SHORTEST_STEP, LONGEST_STEP)
    }

    /// It has kept others waiting since then. Returns whether it may do so any longer.
    pub fn kept_waiting(&self, since: Instant) -> bool {
        let now = Instant::now();
        let mut lag = locked(&self.lag);
        lag.kept_waiting(since, now);
        !lag.left(self.patience, now).is_zero()
    }
}
