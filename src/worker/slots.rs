//! How much may go out of and into each region: bytes a second, and copies at the same time.
//!
//! Copies are counted in the database, over all processes. Bytes are counted here: each process takes as large a part of what a
//! region allows as its copies are of all copies there, which it looks up every second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::pacing::{Pace, Paces};
use crate::{
    db::{CopiesInFlight, Db},
    domain::{RegionId, WorkerId, relay::Topology, with_causes},
};

/// How often a process looks which part of the bytes is its own.
const LOOK: Duration = Duration::from_secs(1);

/// What the transfers of a process share.
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
    /// Whether it was used: only then is there a reason to try again when it is free.
    used: bool,
}

impl Slot {
    /// The region is being fed from now on. A slot that is given back without that wakes no other copy: nothing has changed for them.
    pub fn in_use(mut self) -> Self {
        self.used = true;
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut feeding = self.limits.feeding();
        if let Some(place) = feeding.iter().position(|feed| *feed == self.feed) {
            feeding.swap_remove(place);
        }
        if self.used {
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
    pub async fn follow(self, state: Db, owner: WorkerId, stop: CancellationToken) {
        if self.0.topology.rates().all(|(_, egress, ingress)| egress.is_none() && ingress.is_none()) {
            return;
        }
        loop {
            match state.copies_in_flight(&owner).await {
                Ok(underway) => {
                    for (region, paces) in &self.0.paces {
                        let count = |is: &dyn Fn(&CopiesInFlight) -> bool| {
                            underway.iter().filter(|u| is(u)).map(|u| u.copies).sum()
                        };
                        let into = |u: &CopiesInFlight| u.to == *region;
                        let out_of = |u: &CopiesInFlight| u.from.as_ref() == Some(region);
                        paces.ingress.share(count(&|u| into(u) && u.is_own), count(&into));
                        paces.egress.share(count(&|u| out_of(u) && u.is_own), count(&out_of));
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
            let slot = Slot { limits: self.clone(), feed: (from.clone(), to.clone()), used: false };
            by_source.entry(from).or_default().push((to, slot));
        }
        by_source.into_iter().collect()
    }

    /// Resolves when a slot that was used has become free.
    pub async fn freed(&self) {
        self.0.ended.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::Limits;
    use crate::domain::{
        RegionId,
        relay::{RegionLimits, Topology},
    };

    /// A copy that can't use its slot must not wake the others: they would do the same, and wake it in turn.
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
