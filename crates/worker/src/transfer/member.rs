//! A destination as its source sees it: where its blobs are sent, and whether it keeps up.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use domain::RegionId;
use storage::Error;
use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    time::Instant,
};

use super::{
    byte_channel::{ChunkSender, QueueMonitor},
    destination::Delivery,
    lag::Lag,
    schedule::MemberId,
};

/// The bounds of the interval at which a sender checks whether others wait for a member without room.
const SHORTEST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(10);

/// A destination in a fan-out.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Member {
    /// The number of the member in its fan-out.
    pub id: MemberId,
    pub region: RegionId,
    /// Announces blobs; `None` once the member is closed.
    deliveries: Mutex<Option<mpsc::Sender<Delivery>>>,
    /// The queues of the blobs that the member is receiving.
    queues: Mutex<Vec<QueueMonitor>>,
    lag: Mutex<Lag>,
    /// The longest time that others wait for the member at once.
    patience: Duration,
    /// The error of the source while it sent to this member.
    failure: OnceLock<Arc<Error>>,
    /// The errors of optional blobs that the source could not send, by index in the image.
    lost: Mutex<BTreeMap<usize, Arc<Error>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Member {
    /// Creates a member whose blobs are announced through `deliveries`.
    pub fn new(id: MemberId, region: RegionId, deliveries: mpsc::Sender<Delivery>, patience: Duration) -> Self {
        Self {
            id,
            region,
            deliveries: Mutex::new(Some(deliveries)),
            queues: Mutex::default(),
            lag: Mutex::new(Lag::new(Instant::now())),
            patience,
            failure: OnceLock::new(),
            lost: Mutex::default(),
        }
    }

    /// Whether the member has received everything that was sent to it.
    pub fn is_idle(&self) -> bool {
        let is_drained = |deliveries: &mpsc::Sender<_>| deliveries.capacity() == deliveries.max_capacity();
        lock(&self.deliveries).as_ref().is_some_and(is_drained) && lock(&self.queues).iter().all(QueueMonitor::is_empty)
    }

    /// Ends the member: nothing more is sent to it.
    pub fn close(&self) {
        lock(&self.deliveries).take();
    }

    /// Resolves when the destination has stopped receiving.
    pub async fn closed(&self) {
        let deliveries = lock(&self.deliveries).clone();
        if let Some(deliveries) = deliveries {
            deliveries.closed().await;
        }
    }

    /// Records an error of the source while it sent to this member.
    pub fn fail(&self, error: Arc<Error>) {
        // The first error is the cause of the later ones.
        let _ = self.failure.set(error);
    }

    /// Records that the source can't send an optional blob.
    pub fn record_lost_blob(&self, blob: usize, error: Arc<Error>) {
        lock(&self.lost).insert(blob, error);
    }

    /// Returns the error of an optional blob that the source could not send.
    pub fn lost_blob(&self, blob: usize) -> Option<Arc<Error>> {
        lock(&self.lost).get(&blob).cloned()
    }

    /// Returns the error of the source, if it failed.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.failure.get().cloned()
    }

    /// Announces a blob whose chunks come from `chunks`, and waits for room for at most one poll interval. Returns
    /// whether the member receives it, or the delivery if there is no room.
    pub async fn deliver(&self, delivery: Delivery, chunks: &ChunkSender) -> Result<bool, Delivery> {
        let Some(sender) = lock(&self.deliveries).clone() else { return Ok(false) };
        match sender.send_timeout(delivery, self.poll_interval()).await {
            Ok(()) => {
                let mut queues = lock(&self.queues);
                queues.retain(|queue| !queue.is_closed());
                queues.push(chunks.monitor());
                Ok(true)
            }
            Err(SendTimeoutError::Timeout(delivery)) => Err(delivery),
            Err(SendTimeoutError::Closed(_)) => Ok(false),
        }
    }

    /// Returns how long to wait for room in the queue before checking whether other members wait for this one.
    pub fn poll_interval(&self) -> Duration {
        lock(&self.lag).left(self.patience, Instant::now()).clamp(SHORTEST_POLL, LONGEST_POLL)
    }

    /// Records that the member has kept others waiting since `since`. Returns whether it may continue to do so.
    pub fn kept_waiting(&self, since: Instant) -> bool {
        let now = Instant::now();
        let mut lag = lock(&self.lag);
        lag.kept_waiting(since, now);
        !lag.left(self.patience, now).is_zero()
    }
}
