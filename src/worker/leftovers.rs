//! What is left over in the regions' stores: finding it, and removing what is old enough.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use crate::{
    db::{self, Db},
    domain::{Leftover, RegionId, Timestamp, leftovers, with_causes},
    region::{self, Store, Stores},
};

/// How old something must be that is removed: older than any file that a copy still writes to.
pub const SAFE_AGE: Duration = Duration::from_secs(3_600);
/// How often a process looks.
const INTERVAL: Duration = Duration::from_secs(600);
/// How long it may take in one region.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why it can't be said what is left over in a region.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// The store can't be looked at.
    #[error(transparent)]
    Store(#[from] region::Error),
    /// The database does not say what is in use.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Removes what is left over, at intervals. Clones share the time of the last look.
#[derive(Debug, Clone, Default)]
pub struct LeftoverSweep {
    /// Nothing before the first look.
    next: Arc<Mutex<Option<Instant>>>,
}

impl LeftoverSweep {
    /// Whether it is due; if so, it is due again after the interval.
    fn is_due(&self) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = next.is_none_or(|next| next <= now);
        if due {
            *next = Some(now + INTERVAL);
        }
        due
    }

    /// Removes what is left over in each region, if it is time to look.
    pub async fn run(&self, state: &Db, stores: &Stores) {
        if self.is_due() {
            clear_all(state, stores).await;
        }
    }
}

/// Removes what is left over in each region. No region waits for another.
async fn clear_all(state: &Db, stores: &Stores) {
    // By the database's clock; that of a file system may differ by far less than the age that is asked for.
    let until = match state.time().await {
        Ok(now) => now.before(SAFE_AGE),
        Err(error) => {
            tracing::debug!(
                error = with_causes(&error),
                "failed to ask for the time; leftovers stay until the next look"
            );
            return;
        }
    };
    let regions = stores.iter().map(|(region, store)| async move {
        match timeout(DEADLINE, clear(state, region, &**store, until)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(error = with_causes(&error), %region, "failed to remove leftovers; will retry");
            }
            Err(_) => tracing::debug!(%region, "failed to remove leftovers in time; will retry"),
        }
    });
    join_all(regions).await;
}

/// What is left over in a region, and was changed last at `until` or before.
pub async fn find_leftovers(
    state: &Db,
    region: &RegionId,
    store: &dyn Store,
    until: Timestamp,
) -> Result<Vec<Leftover>, LeftoverError> {
    let found = store.find_leftovers().await?;
    // Asked afterwards: a claim that has come since the store was looked at has another fence than was found there.
    let names: Vec<_> = found.iter().map(|image| image.name.clone()).collect();
    Ok(leftovers(found, &state.image_uses(region, &names).await?, until))
}

async fn clear(state: &Db, region: &RegionId, store: &dyn Store, until: Timestamp) -> Result<(), LeftoverError> {
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
            // One that can't be removed must not keep the others.
            Err(error) => {
                tracing::warn!(error = with_causes(&error), %region, path, "failed to remove a leftover; will retry");
            }
        }
    }
    if count > 0 {
        tracing::info!(%region, count, bytes, "removed leftovers of copies that failed, were canceled or died");
    }
    Ok(())
}
