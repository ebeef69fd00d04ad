//! How much may go out of and into each region: bytes a second, and copies at the same time.
//!
//! Copies are counted in the database, over all processes. Bytes are counted here: each process takes as large a part of what a
//! region allows as its copies are of all copies there, which it looks up every second.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use tokio_util::sync::CancellationToken;

use crate::{
    domain::{RegionId, WorkerId, relay::Topology, with_causes},
    state::{State, Underway},
};

/// How much of a second may pass at once after nothing has passed for a while.
const BURST: Duration = Duration::from_millis(50);

/// How often a process looks which part of the bytes is its own.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes a second that may pass.
#[derive(Debug)]
pub struct Pace {
    /// Nothing for any number.
    bytes_per_second: Option<u64>,
    /// The part of it that is this process's, as the bits of a number up to 1.
    part: AtomicU64,
    /// Until when what has passed is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// A pace; without a number, any.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, part: AtomicU64::new(1_f64.to_bits()), paid: Mutex::new(Instant::now()) }
    }

    /// Leaves the rest to other processes: `ours` of `all` copies are carried here.
    fn share(&self, ours: u32, all: u32) {
        // Who carries nothing is about to begin, if it asks at all.
        let part = f64::from(ours.max(1)) / f64::from(all.max(ours).max(1));
        self.part.store(part.to_bits(), Relaxed);
    }

    /// Waits until as many bytes may pass.
    pub async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        #[allow(clippy::cast_precision_loss)]
        let cost = Duration::from_secs_f64(bytes as f64 / (rate as f64 * f64::from_bits(self.part.load(Relaxed))));
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
    /// How many copies may go into a region, where that is limited.
    copies_into: BTreeMap<RegionId, usize>,
    /// How many regions a region may feed, where that, or its bytes, are limited.
    copies_out_of: BTreeMap<RegionId, usize>,
    /// Who feeds whom at the moment.
    feeding: Mutex<Vec<(RegionId, RegionId)>>,
    ended: Notify,
}

/// A region that is being fed. Free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    limits: Limits,
    feed: (RegionId, RegionId),
    /// Whether nobody is to be told that it is free.
    quiet: bool,
}

impl Slot {
    /// Gives a slot back that could not be used because other processes leave no room: nobody else here has any use for it either.
    pub fn forgo(mut self) {
        self.quiet = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut feeding = self.limits.feeding();
        if let Some(place) = feeding.iter().position(|feed| *feed == self.feed) {
            feeding.swap_remove(place);
        }
        if !self.quiet {
            self.limits.0.ended.notify_waiters();
        }
    }
}

impl Limits {
    /// The limits of regions.
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
            ended: Notify::new(),
        }))
    }

    /// The paces of a region.
    pub fn paces(&self, region: &RegionId) -> Arc<Paces> {
        let free = || Arc::new(Paces { egress: Pace::new(None), ingress: Pace::new(None) });
        self.0.paces.get(region).cloned().unwrap_or_else(free)
    }

    /// How many copies may go into a region at the same time, whichever process carries them.
    pub fn copies_into(&self) -> &BTreeMap<RegionId, usize> {
        &self.0.copies_into
    }

    /// How many regions a region may feed at the same time, whichever process carries the copies.
    pub fn copies_out_of(&self) -> &BTreeMap<RegionId, usize> {
        &self.0.copies_out_of
    }

    /// Keeps to this process's part of the bytes, until `stop` is canceled.
    pub async fn follow(self, state: State, owner: WorkerId, stop: CancellationToken) {
        if self.0.topology.rates().all(|(_, egress, ingress)| egress.is_none() && ingress.is_none()) {
            return;
        }
        loop {
            match state.copies_underway(&owner).await {
                Ok(underway) => {
                    for (region, paces) in &self.0.paces {
                        let count =
                            |is: &dyn Fn(&Underway) -> bool| underway.iter().filter(|u| is(u)).map(|u| u.copies).sum();
                        let into = |u: &Underway| u.to == *region;
                        let out_of = |u: &Underway| u.from.as_ref() == Some(region);
                        paces.ingress.share(count(&|u| into(u) && u.ours), count(&into));
                        paces.egress.share(count(&|u| out_of(u) && u.ours), count(&out_of));
                    }
                }
                Err(error) => {
                    tracing::debug!(error = with_causes(&error), "what other processes carry is not known for now");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
        }
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
            let slot = Slot { limits: self.clone(), feed: (from.clone(), to.clone()), quiet: false };
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

    #[tokio::test(start_paused = true)]
    async fn a_pace_that_is_shared_leaves_the_rest_to_others() {
        let pace = Pace::new(Some(1_000_000));
        pace.share(1, 4);
        let start = Instant::now();
        for _ in 0..10 {
            pace.take(100_000).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(3_900) && took <= Duration::from_millis(4_100), "{took:?}");
    }
}
