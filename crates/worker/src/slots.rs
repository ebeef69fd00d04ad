//! Limits the bandwidth and the concurrent copies out of and into each region.
//!
//! Copies are counted in the database, over all processes. Each process limits its bytes to a share of the region's
//! limit that is proportional to its share of the region's copies. It reads that share every second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use db::{CopiesInFlight, Db};
use domain::{RegionId, WorkerId, relay::Topology, with_causes};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::pacing::{Pace, Paces};

/// The interval at which a process updates its share of the bandwidth.
const SHARE_INTERVAL: Duration = Duration::from_secs(1);

/// The limits that the transfers of a process share. Clones share the same limits.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    topology: Topology,
    paces: BTreeMap<RegionId, Arc<Paces>>,
    /// Maximum number of concurrent copies into each region that has such a limit.
    copies_into: BTreeMap<RegionId, usize>,
    /// Maximum number of regions that each region may feed concurrently. Holds the regions that limit this number or
    /// their bandwidth.
    copies_out_of: BTreeMap<RegionId, usize>,
    /// The current feeds, as pairs of source and destination.
    feeding: Mutex<Vec<(RegionId, RegionId)>>,
    freed: Notify,
}

/// The slot of a feed. Freed on drop.
#[derive(Debug)]
pub struct Slot {
    limits: Limits,
    feed: (RegionId, RegionId),
    /// Whether the feed has started. Freeing the slot can let another copy start only if it has.
    used: bool,
}

impl Slot {
    /// Marks the feed as started. A slot that is dropped without this mark wakes no other copy, because nothing has
    /// changed for the others.
    pub fn in_use(mut self) -> Self {
        self.used = true;
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut feeding = self.limits.feeding();
        if let Some(index) = feeding.iter().position(|feed| *feed == self.feed) {
            feeding.swap_remove(index);
        }
        if self.used {
            self.limits.0.freed.notify_waiters();
        }
    }
}

impl Limits {
    /// Creates the limits of a topology.
    pub fn new(topology: Topology) -> Self {
        let paces = topology.rates().map(|(region, egress, ingress)| {
            (region.clone(), Arc::new(Paces { egress: Pace::new(egress), ingress: Pace::new(ingress) }))
        });
        let paces = paces.collect();
        let copies_out_of = topology.copies_out_of().map(|(region, copies)| (region.clone(), copies)).collect();
        let copies_into = topology.copies_into().map(|(region, copies)| (region.clone(), copies)).collect();
        Self(Arc::new(Shared {
            topology,
            paces,
            copies_into,
            copies_out_of,
            feeding: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// Returns the rate limiters of a region.
    pub fn paces(&self, region: &RegionId) -> Arc<Paces> {
        let unlimited = || Arc::new(Paces { egress: Pace::new(None), ingress: Pace::new(None) });
        self.0.paces.get(region).cloned().unwrap_or_else(unlimited)
    }

    /// Returns the limit of concurrent copies into each region, over all processes. A region without a limit is absent.
    pub fn copies_into(&self) -> &BTreeMap<RegionId, usize> {
        &self.0.copies_into
    }

    /// Returns the limit of regions that each region feeds concurrently, over all processes. A region without a limit
    /// is absent.
    pub fn copies_out_of(&self) -> &BTreeMap<RegionId, usize> {
        &self.0.copies_out_of
    }

    /// Updates this process's shares of the bandwidth until `stop` is canceled.
    pub async fn track_shares(self, state: Db, owner: WorkerId, stop: CancellationToken) {
        if self.0.topology.rates().all(|(_, egress, ingress)| egress.is_none() && ingress.is_none()) {
            return;
        }
        loop {
            match state.copies_in_flight(&owner).await {
                Ok(copies) => {
                    for (region, paces) in &self.0.paces {
                        let count = |matches: &dyn Fn(&CopiesInFlight) -> bool| {
                            copies.iter().filter(|copy| matches(copy)).map(|copy| copy.copies).sum()
                        };
                        let into = |copy: &CopiesInFlight| copy.to == *region;
                        let out_of = |copy: &CopiesInFlight| copy.from.as_ref() == Some(region);
                        paces.ingress.set_share(count(&|copy| into(copy) && copy.is_own), count(&into));
                        paces.egress.set_share(count(&|copy| out_of(copy) && copy.is_own), count(&out_of));
                    }
                }
                Err(error) => {
                    tracing::debug!(
                        error = with_causes(&error),
                        "failed to read the copies of other processes; keeping the current bandwidth shares"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SHARE_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn feeding(&self) -> MutexGuard<'_, Vec<(RegionId, RegionId)>> {
        self.0.feeding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Assigns waiting regions to sources and occupies their slots.
    pub fn assign(&self, sources: &[RegionId], waiting: &[RegionId]) -> Vec<(RegionId, Vec<(RegionId, Slot)>)> {
        let mut feeding = self.feeding();
        let feeds = self.0.topology.plan(sources, waiting, &feeding);
        let mut by_source: BTreeMap<RegionId, Vec<(RegionId, Slot)>> = BTreeMap::new();
        for (from, to) in feeds {
            feeding.push((from.clone(), to.clone()));
            let slot = Slot { limits: self.clone(), feed: (from.clone(), to.clone()), used: false };
            by_source.entry(from).or_default().push((to, slot));
        }
        by_source.into_iter().collect()
    }

    /// Resolves when the slot of a feed that had started is freed.
    pub async fn freed(&self) {
        self.0.freed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use domain::{
        RegionId,
        relay::{RegionLimits, Topology},
    };
    use tokio::time::timeout;

    use super::Limits;

    /// A copy that can't use its slot must not wake the others: they would also fail to use it, and wake the copy in
    /// turn.
    #[tokio::test(start_paused = true)]
    async fn only_a_slot_that_was_used_wakes_those_that_wait() {
        let [home, one]: [[RegionId; 1]; 2] = ["home", "one"].map(|name| [name.parse().expect("an id")]);
        let one_copy = RegionLimits { egress_copies: Some(1), ..RegionLimits::default() };
        let limits = Limits::new(Topology::new([(home[0].clone(), one_copy)], []));
        let mut woken = 0;
        for _ in 0..3 {
            let assigned = limits.assign(&home, &one);
            assert_eq!(assigned.len(), 1);
            let waiter = timeout(Duration::from_secs(1), limits.freed());
            let (freed, ()) = tokio::join!(waiter, async { drop(assigned) });
            woken += usize::from(freed.is_ok());
        }
        assert_eq!(woken, 0);
        let (_, slots) = limits.assign(&home, &one).remove(0);
        let used: Vec<_> = slots.into_iter().map(|(_, slot)| slot.in_use()).collect();
        let (freed, ()) = tokio::join!(timeout(Duration::from_secs(1), limits.freed()), async { drop(used) });
        freed.expect("it is woken");
    }
}
