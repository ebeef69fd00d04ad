//! How many copies this process carries into each region at the same time.
//!
//! Every region has lanes of its own, and nothing else is shared by regions: a region that is slow, refuses or does not answer fills its
//! own lanes and takes nothing from the others. A copy waits for a lane in the database, as a replica that is due.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{db::LaneCapacity, domain::RegionId};

/// The lanes of the regions that a worker serves.
#[derive(Debug, Clone)]
pub struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Copies into a region for which an image is claimed.
    limit: usize,
    taken: Mutex<BTreeMap<RegionId, usize>>,
    freed: Notify,
}

/// A place in the lanes of a region. Free again when it is dropped.
#[derive(Debug)]
pub struct Lane {
    lanes: Lanes,
    region: RegionId,
}

impl Lanes {
    /// `limit` lanes for each of some regions.
    pub fn new<'a>(regions: impl IntoIterator<Item = &'a RegionId>, limit: usize) -> Self {
        let taken = regions.into_iter().map(|region| (region.clone(), 0)).collect();
        Self(Arc::new(Shared { limit, taken: Mutex::new(taken), freed: Notify::new() }))
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<RegionId, usize>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many images more each region takes. An image is claimed for a region with a free lane. Regions that are due for the same
    /// image come along even when their lanes are just taken, up to twice the limit: those that keep up with each other then stay
    /// together, and the source is read once for all of them.
    pub fn free(&self) -> BTreeMap<RegionId, LaneCapacity> {
        let limit = self.0.limit;
        let free = |taken: usize| LaneCapacity {
            primary: limit.saturating_sub(taken),
            total: (limit * 2).saturating_sub(taken),
        };
        self.taken().iter().map(|(region, taken)| (region.clone(), free(*taken))).collect()
    }

    /// Takes a lane for a copy that has been claimed.
    pub fn enter(&self, region: &RegionId) -> Lane {
        *self.taken().entry(region.clone()).or_default() += 1;
        Lane { lanes: self.clone(), region: region.clone() }
    }

    /// Resolves when a lane has been freed since the last call. For one waiter.
    pub async fn freed(&self) {
        self.0.freed.notified().await;
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(taken) = self.lanes.taken().get_mut(&self.region) {
            *taken = taken.saturating_sub(1);
        }
        self.lanes.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::Lanes;
    use crate::domain::RegionId;

    #[tokio::test]
    async fn a_region_fills_its_own_lanes_only() {
        let [slow, fast]: [RegionId; 2] = ["slow", "fast"].map(|name| name.parse().expect("an id"));
        let lanes = Lanes::new([&slow, &fast], 2);
        let held: Vec<_> = (0..3).map(|_| lanes.enter(&slow)).collect();
        let free = lanes.free();
        assert_eq!((free[&slow].primary, free[&slow].total), (0, 1));
        assert_eq!((free[&fast].primary, free[&fast].total), (2, 4));
        drop(held);
        lanes.freed().await;
        assert_eq!(lanes.free()[&slow].primary, 2);
    }
}
