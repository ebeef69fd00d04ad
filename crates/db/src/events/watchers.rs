//! Snapshots for watchers. One task reads every watched synchronization in one query whenever something may have
//! changed, so the load on the database does not grow with the number of watchers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::{RequestId, Synchronization};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Db, Result};

/// Changes within this interval share one snapshot.
const INTERVAL: Duration = Duration::from_millis(50);

/// Receiver of the latest snapshot of a synchronization.
pub type Snapshots = watch::Receiver<Arc<Synchronization>>;

/// The watched synchronizations.
#[derive(Debug, Default)]
pub struct Subscriptions(Mutex<Senders>);

type Senders = HashMap<RequestId, watch::Sender<Arc<Synchronization>>>;

impl Subscriptions {
    /// Locks the map; a panic cannot leave it half changed.
    fn with<T>(&self, act: impl FnOnce(&mut Senders) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Db {
    /// Watches a synchronization. The returned receiver already holds a snapshot.
    pub async fn synchronization_watch(&self, id: RequestId) -> Result<Snapshots> {
        let receiver = self.0.subscriptions.with(|senders| senders.get(&id).map(watch::Sender::subscribe));
        if let Some(receiver) = receiver {
            return Ok(receiver);
        }
        let snapshot = Arc::new(self.synchronization_get(id).await?);
        let receiver = self
            .0
            .subscriptions
            .with(|senders| senders.entry(id).or_insert_with(|| watch::Sender::new(snapshot)).subscribe());
        // Another round reads the changes between the snapshot and the subscription.
        self.0.signals.changed.raise();
        Ok(receiver)
    }
}

/// Publishes snapshots until `stop` is canceled. Reads after every change, and at intervals of `poll` without a change.
pub async fn run(db: Db, poll: Duration, stop: CancellationToken) {
    let mut seen = 0;
    let mut is_failing = false;
    while !stop.is_cancelled() {
        let ids = db.0.subscriptions.with(|senders| {
            senders.retain(|_, sender| sender.receiver_count() > 0);
            senders.keys().copied().collect::<Vec<_>>()
        });
        tracing::debug!(synchronizations = ids.len(), "reading watched synchronizations");
        match db.synchronizations(&ids).await {
            Ok(snapshots) => {
                is_failing = false;
                db.0.subscriptions.with(|senders| publish(senders, snapshots));
            }
            Err(error) if !is_failing => {
                is_failing = true;
                tracing::warn!(%error, "failed to read watched synchronizations; will retry");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = async {
                tokio::time::sleep(INTERVAL).await;
                db.changed(&mut seen, poll).await;
            } => {}
            () = stop.cancelled() => {}
        }
    }
}

fn publish(senders: &mut Senders, snapshots: Vec<Synchronization>) {
    for snapshot in snapshots {
        let is_terminal = snapshot.state.is_terminal();
        let id = snapshot.request_id;
        if let Some(sender) = senders.get(&id) {
            sender.send_if_modified(|last| {
                let is_changed = **last != snapshot;
                if is_changed {
                    *last = Arc::new(snapshot);
                }
                is_changed
            });
        }
        // Receivers keep the last snapshot.
        if is_terminal {
            senders.remove(&id);
        }
    }
}
