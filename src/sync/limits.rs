//! How much may go out of and into each region: bytes a second, and copies at the same time. Shared by all passes of a process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::domain::{RegionId, relay::Topology};

/// How much of a second may pass at once after nothing has passed for a while.
const BURST: Duration = Duration::from_millis(50);

/// Bytes a second that may pass.
#[derive(Debug)]
pub struct Pace {
    /// Nothing for any number.
    bytes_per_second: Option<u64>,
    /// Until when what has passed is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// A pace; without a number, any.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, paid: Mutex::new(Instant::now()) }
    }

    /// Waits until as many bytes may pass.
    pub async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        #[allow(clippy::cast_precision_loss)]
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            *paid = (*paid).max(Instant::now() - BURST) + cost;
            *paid
        };
        sleep_until(until).await;
    }
}

/// The paces of a region.
#[derive(Debug)]
pub struct Paces {
    /// Out of it.
    pub egress: Pace,
    /// Into it.
    pub ingress: Pace,
}

/// What passes of a process share.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    topology: Topology,
    paces: BTreeMap<RegionId, Arc<Paces>>,
    /// Who feeds whom at the moment.
    feeding: Mutex<Vec<(RegionId, RegionId)>>,
    ended: Notify,
}

/// A region that is being fed. Free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    limits: Limits,
    feed: (RegionId, RegionId),
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut feeding = self.limits.feeding();
        if let Some(place) = feeding.iter().position(|feed| *feed == self.feed) {
            feeding.swap_remove(place);
        }
        self.limits.0.ended.notify_waiters();
    }
}

impl Limits {
    /// The limits of regions.
    pub fn new(topology: Topology) -> Self {
        let paces = topology.rates().map(|(region, egress, ingress)| {
            (region.clone(), Arc::new(Paces { egress: Pace::new(egress), ingress: Pace::new(ingress) }))
        });
        let paces = paces.collect();
        Self(Arc::new(Shared { topology, paces, feeding: Mutex::default(), ended: Notify::new() }))
    }

    /// The paces of a region.
    pub fn paces(&self, region: &RegionId) -> Arc<Paces> {
        let free = || Arc::new(Paces { egress: Pace::new(None), ingress: Pace::new(None) });
        self.0.paces.get(region).cloned().unwrap_or_else(free)
    }

    fn feeding(&self) -> MutexGuard<'_, Vec<(RegionId, RegionId)>> {
        self.0.feeding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides who of `waiting` is fed by whom of `sources` from now on, and takes their slots.
    pub fn assign(&self, sources: &[RegionId], waiting: &[RegionId]) -> Vec<(RegionId, Vec<(RegionId, Slot)>)> {
        let mut feeding = self.feeding();
        let feeds = self.0.topology.plan(sources, waiting, &feeding);
        let mut by_source: BTreeMap<RegionId, Vec<(RegionId, Slot)>> = BTreeMap::new();
        for (from, to) in feeds {
            feeding.push((from.clone(), to.clone()));
            let slot = Slot { limits: self.clone(), feed: (from.clone(), to.clone()) };
            by_source.entry(from).or_default().push((to, slot));
        }
        by_source.into_iter().collect()
    }

    /// Resolves when a slot has become free.
    pub async fn freed(&self) {
        self.0.ended.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Pace;

    #[tokio::test(start_paused = true)]
    async fn no_more_passes_than_the_pace_allows() {
        let pace = Pace::new(Some(1_000_000));
        let start = Instant::now();
        for _ in 0..50 {
            pace.take(100_000).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(4_900) && took <= Duration::from_millis(5_100), "{took:?}");
        Pace::new(None).take(usize::MAX).await;
    }
}
