//! What watchers see. One task reads every watched synchronization, whenever something may have changed, in one go; however
//! many watch, the database is asked the same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Result, State};
use crate::domain::{RequestId, Synchronization};

/// Changes that come faster than this are seen together.
const AT_MOST_EVERY: Duration = Duration::from_millis(50);

/// The newest snapshot of a synchronization, and those that follow.
pub type Snapshots = watch::Receiver<Arc<Synchronization>>;

/// Who watches what.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Mutex<HashMap<RequestId, watch::Sender<Arc<Synchronization>>>>);

type Watched = HashMap<RequestId, watch::Sender<Arc<Synchronization>>>;

impl Subscriptions {
    /// The map holds nothing that a panic could leave half-done.
    fn with<T>(&self, act: impl FnOnce(&mut Watched) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// Watches a synchronization: the receiver holds a snapshot at once.
    pub async fn synchronization_watch(&self, id: RequestId) -> Result<Snapshots> {
        let known = self.0.subscriptions.with(|watched| watched.get(&id).map(watch::Sender::subscribe));
        if let Some(receiver) = known {
            return Ok(receiver);
        }
        let snapshot = Arc::new(self.synchronization_get(id).await?);
        let receiver = self
            .0
            .subscriptions
            .with(|watched| watched.entry(id).or_insert_with(|| watch::Sender::new(snapshot)).subscribe());
        // What changed between the reading and the subscription is seen by the next round.
        self.0.signals.changed.raise();
        Ok(receiver)
    }
}

/// Feeds the watchers until `stop` is canceled.
pub(super) async fn run(state: State, poll: Duration, stop: CancellationToken) {
    let mut seen = 0;
    let mut trouble = false;
    while !stop.is_cancelled() {
        let ids = state.0.subscriptions.with(|watched| {
            watched.retain(|_, sender| sender.receiver_count() > 0);
            watched.keys().copied().collect::<Vec<_>>()
        });
        tracing::debug!(synchronizations = ids.len(), "feeding watchers");
        match state.synchronizations(&ids).await {
            Ok(snapshots) => {
                trouble = false;
                state.0.subscriptions.with(|watched| publish(watched, snapshots));
            }
            Err(error) if !trouble => {
                trouble = true;
                tracing::warn!(%error, "watchers can't be fed for now");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = async {
                tokio::time::sleep(AT_MOST_EVERY).await;
                state.changed(&mut seen, poll).await;
            } => {}
            () = stop.cancelled() => {}
        }
    }
}

fn publish(watched: &mut Watched, snapshots: Vec<Synchronization>) {
    for snapshot in snapshots {
        let terminal = snapshot.state.is_terminal();
        let id = snapshot.request_id;
        if let Some(sender) = watched.get(&id) {
            sender.send_if_modified(|last| {
                let changed = **last != snapshot;
                if changed {
                    *last = Arc::new(snapshot);
                }
                changed
            });
        }
        // The last snapshot stays with whoever has a receiver; there is nothing more to feed.
        if terminal {
            watched.remove(&id);
        }
    }
}
