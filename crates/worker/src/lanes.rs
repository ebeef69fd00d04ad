//! Limits the concurrent copies of this process into each region.
//!
//! Every region has its own lanes and shares nothing else with other regions. A region that is slow, rejects or hangs
//! therefore occupies only its own lanes. A copy that waits for a lane is a due replica in the database.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use db::LaneCapacity;
use domain::RegionId;
use tokio::sync::Notify;

/// The lanes of the regions that a worker serves. Clones share the lanes.
#[derive(Debug, Clone)]
pub struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Number of concurrent copies into a region up to which images are claimed for it.
    limit: usize,
    occupied: Mutex<BTreeMap<RegionId, usize>>,
    freed: Notify,
}

/// An occupied lane of a region. Freed on drop.
#[derive(Debug)]
pub struct Lane {
    lanes: Lanes,
    region: RegionId,
}

impl Lanes {
    /// Creates `limit` lanes for each region.
    pub fn new<'a>(regions: impl IntoIterator<Item = &'a RegionId>, limit: usize) -> Self {
        let occupied = regions.into_iter().map(|region| (region.clone(), 0)).collect();
        Self(Arc::new(Shared { limit, occupied: Mutex::new(occupied), freed: Notify::new() }))
    }

    fn occupied(&self) -> MutexGuard<'_, BTreeMap<RegionId, usize>> {
        self.0.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the free lanes of each region. An image is claimed for a region with a free lane. Other regions that are
    /// due for the same image join even when their lanes are occupied, up to twice the limit: regions of equal speed
    /// then stay together, and the source is read once for all of them.
    pub fn free(&self) -> BTreeMap<RegionId, LaneCapacity> {
        let limit = self.0.limit;
        let free = |occupied: usize| LaneCapacity {
            primary: limit.saturating_sub(occupied),
            total: (limit * 2).saturating_sub(occupied),
        };
        self.occupied().iter().map(|(region, occupied)| (region.clone(), free(*occupied))).collect()
    }

    /// Occupies a lane for a claimed copy.
    pub fn occupy(&self, region: &RegionId) -> Lane {
        *self.occupied().entry(region.clone()).or_default() += 1;
        Lane { lanes: self.clone(), region: region.clone() }
    }

    /// Resolves when a lane has been freed since the last call. Supports one waiter.
    pub async fn freed(&self) {
        self.0.freed.notified().await;
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(occupied) = self.lanes.occupied().get_mut(&self.region) {
            *occupied = occupied.saturating_sub(1);
        }
        self.lanes.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use domain::RegionId;

    use super::Lanes;

    #[tokio::test]
    async fn a_region_fills_its_own_lanes_only() {
        let [slow, fast]: [RegionId; 2] = ["slow", "fast"].map(|name| name.parse().expect("an id"));
        let lanes = Lanes::new([&slow, &fast], 2);
        let occupied: Vec<_> = (0..3).map(|_| lanes.occupy(&slow)).collect();
        let free = lanes.free();
        assert_eq!((free[&slow].primary, free[&slow].total), (0, 1));
        assert_eq!((free[&fast].primary, free[&fast].total), (2, 4));
        drop(occupied);
        lanes.freed().await;
        assert_eq!(lanes.free()[&slow].primary, 2);
    }
}
