//! Finds and removes leftovers in the stores: files and images of copies that failed, were canceled, or lost their
//! worker.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use db::{self, Db};
use domain::{Leftover, RegionId, Timestamp, leftovers, with_causes};
use futures_util::future::join_all;
use storage::{self, Store, Stores};
use tokio::time::{Instant, timeout};

/// The minimum age of a leftover that is removed. No running copy still writes a file that is this old.
pub const SAFE_AGE: Duration = Duration::from_secs(3_600);
/// The interval at which a process removes leftovers.
const INTERVAL: Duration = Duration::from_secs(600);
/// The time limit for each region.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why the leftovers of a region can't be listed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] storage::Error),
    /// The images in use can't be read from the database.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Removes leftovers at intervals. Clones share the time of the last run.
#[derive(Debug, Clone, Default)]
pub struct LeftoverSweep {
    /// `None` before the first run.
    next: Arc<Mutex<Option<Instant>>>,
}

impl LeftoverSweep {
    /// Returns whether a run is due. If so, the next one is due after the interval.
    fn is_due(&self) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = next.is_none_or(|next| next <= now);
        if due {
            *next = Some(now + INTERVAL);
        }
        due
    }

    /// Removes the leftovers of each region, if a run is due.
    pub async fn run(&self, state: &Db, stores: &Stores) {
        if self.is_due() {
            remove_all(state, stores).await;
        }
    }
}

/// Removes the leftovers of all regions, concurrently.
async fn remove_all(state: &Db, stores: &Stores) {
    // Uses the database's clock. The clock of a file system may differ, but by far less than the minimum age.
    let until = match state.time().await {
        Ok(now) => now.before(SAFE_AGE),
        Err(error) => {
            tracing::debug!(
                error = with_causes(&error),
                "failed to read the database's time; leftovers stay until the next run"
            );
            return;
        }
    };
    let regions = stores.iter().map(|(region, store)| async move {
        match timeout(DEADLINE, remove(state, region, &**store, until)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(error = with_causes(&error), %region, "failed to remove leftovers; will retry");
            }
            Err(_) => tracing::debug!(%region, "failed to remove leftovers in time; will retry"),
        }
    });
    join_all(regions).await;
}

/// Returns the leftovers of a region that were last changed at `until` or before.
pub async fn find_leftovers(
    state: &Db,
    region: &RegionId,
    store: &dyn Store,
    until: Timestamp,
) -> Result<Vec<Leftover>, LeftoverError> {
    let candidates = store.find_leftovers().await?;
    // Read after the store was listed: a later claim has another fence than any file in the list.
    let names: Vec<_> = candidates.iter().map(|image| image.name.clone()).collect();
    Ok(leftovers(candidates, &state.image_uses(region, &names).await?, until))
}

async fn remove(state: &Db, region: &RegionId, store: &dyn Store, until: Timestamp) -> Result<(), LeftoverError> {
    let (mut count, mut bytes) = (0_u64, 0);
    for leftover in find_leftovers(state, region, store, until).await? {
        let path = leftover.path();
        match store.clear_leftover(&leftover).await {
            Ok(true) => {
                tracing::debug!(%region, path, bytes = leftover.bytes(), "removed a leftover");
                count += 1;
                bytes += leftover.bytes();
            }
            Ok(false) => {}
            // A leftover that can't be removed must not stop the removal of the others.
            Err(error) => {
                tracing::warn!(error = with_causes(&error), %region, path, "failed to remove a leftover; will retry");
            }
        }
    }
    if count > 0 {
        tracing::info!(%region, count, bytes, "removed leftovers of copies that failed, were canceled or lost their worker");
    }
    Ok(())
}
