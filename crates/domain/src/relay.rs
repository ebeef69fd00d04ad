//! Plan of sources and destinations: a region that has an image can be the source for regions that wait for the image.
//! The plan is computed again after every change.

use std::collections::BTreeMap;

use super::RegionId;

/// Limits of a region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegionLimits {
    /// Maximum rate of reads from the region, in bytes per second.
    pub egress_bytes_per_second: Option<u64>,
    /// Maximum rate of writes to the region, in bytes per second.
    pub ingress_bytes_per_second: Option<u64>,
    /// Maximum number of concurrent copies from the region.
    pub egress_copies: Option<usize>,
    /// Maximum number of concurrent copies to the region.
    pub ingress_copies: Option<usize>,
}

/// Cost of a link without a configured cost.
pub const DEFAULT_COST: u32 = 100;

/// Limits of regions and costs of the links between them.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    limits: BTreeMap<RegionId, RegionLimits>,
    costs: BTreeMap<(RegionId, RegionId), u32>,
}

impl Topology {
    /// Creates a topology.
    #[must_use]
    pub fn new(
        limits: impl IntoIterator<Item = (RegionId, RegionLimits)>,
        costs: impl IntoIterator<Item = ((RegionId, RegionId), u32)>,
    ) -> Self {
        Self { limits: limits.into_iter().collect(), costs: costs.into_iter().collect() }
    }

    /// Returns the egress and ingress rates of each region with limits, in bytes per second.
    pub fn rates(&self) -> impl Iterator<Item = (&RegionId, Option<u64>, Option<u64>)> {
        self.limits.iter().map(|(region, l)| (region, l.egress_bytes_per_second, l.ingress_bytes_per_second))
    }

    /// Returns the maximum number of copies to each region that has such a limit.
    pub fn copies_into(&self) -> impl Iterator<Item = (&RegionId, usize)> {
        self.limits.iter().filter_map(|(region, limits)| Some((region, limits.ingress_copies?)))
    }

    /// Returns the maximum number of copies from each region that limits their number or rate.
    pub fn copies_out_of(&self) -> impl Iterator<Item = (&RegionId, usize)> {
        self.limits.iter().filter_map(|(region, limits)| {
            let limited = limits.egress_copies.is_some() || limits.egress_bytes_per_second.is_some();
            limited.then(|| (region, limits.egress_copies.unwrap_or(usize::MAX)))
        })
    }

    fn limits(&self, region: &RegionId) -> RegionLimits {
        self.limits.get(region).copied().unwrap_or_default()
    }

    /// Returns the cost of the link between two regions.
    #[must_use]
    pub fn cost(&self, from: &RegionId, to: &RegionId) -> u32 {
        self.costs.get(&(from.clone(), to.clone())).copied().unwrap_or(DEFAULT_COST)
    }

    /// Plans the copies that start now, as pairs of source and destination. `sources` are the regions that have the
    /// image, the home region first. `destinations` wait for the image. `in_flight` are all running copies, of any
    /// image. Chooses the cheapest links first, and the earlier source among equal costs, so that destinations share
    /// one reading of a source where possible. A destination for which no source has capacity keeps waiting.
    #[must_use]
    pub fn plan(
        &self,
        sources: &[RegionId],
        destinations: &[RegionId],
        in_flight: &[(RegionId, RegionId)],
    ) -> Vec<(RegionId, RegionId)> {
        let count = |is: &dyn Fn(&(RegionId, RegionId)) -> bool| in_flight.iter().filter(|copy| is(copy)).count();
        let free = |limit: Option<usize>, used: usize| limit.map_or(usize::MAX, |limit| limit.saturating_sub(used));
        let mut egress: Vec<usize> = sources
            .iter()
            .map(|source| free(self.limits(source).egress_copies, count(&|(from, _)| from == source)))
            .collect();
        let mut open: Vec<&RegionId> = destinations
            .iter()
            .filter(|region| free(self.limits(region).ingress_copies, count(&|(_, to)| to == *region)) > 0)
            .collect();
        let mut copies = Vec::new();
        loop {
            // The cheapest link whose source has capacity, the first among equals.
            let links = open.iter().enumerate().flat_map(|(to, region)| {
                let egress = &egress;
                let sources =
                    sources.iter().enumerate().filter(move |(from, source)| egress[*from] > 0 && source != region);
                sources.map(move |(from, source)| (self.cost(source, region), from, to))
            });
            let Some((_, from, to)) = links.min() else { return copies };
            egress[from] -= 1;
            copies.push((sources[from].clone(), open.remove(to).clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{RegionLimits, Topology};
    use crate::RegionId;

    fn region(n: usize) -> RegionId {
        format!("r{n}").parse().expect("an id")
    }

    fn copies(egress: Option<usize>, ingress: Option<usize>) -> RegionLimits {
        RegionLimits { egress_copies: egress, ingress_copies: ingress, ..RegionLimits::default() }
    }

    #[test]
    fn without_limits_and_costs_the_home_region_is_the_only_source() {
        let sources = [region(0), region(1)];
        let destinations = [region(2), region(3)];
        let copies = Topology::default().plan(&sources, &destinations, &[]);
        assert_eq!(copies, [(region(0), region(2)), (region(0), region(3))]);
    }

    #[test]
    fn a_near_region_is_preferred_to_a_far_home_region() {
        let costs = [((region(0), region(2)), 10), ((region(1), region(2)), 1)];
        let topology = Topology::new([], costs);
        assert_eq!(topology.plan(&[region(0), region(1)], &[region(2)], &[]), [(region(1), region(2))]);
    }

    proptest! {
        #[test]
        fn no_limit_is_exceeded_and_no_destination_with_a_free_source_waits(
            sources in 1..5usize,
            destinations in 0..12usize,
            egress in prop::collection::vec(prop::option::of(0..4usize), 5),
            ingress in prop::collection::vec(prop::option::of(0..2usize), 12),
            costs in prop::collection::vec(1..9u32, 60),
            in_flight in prop::collection::vec((0..5usize, 5..17usize), 0..8),
        ) {
            let from: Vec<_> = (0..sources).map(region).collect();
            let to: Vec<_> = (5..5 + destinations).map(region).collect();
            let limits = (0..5).map(|n| (region(n), copies(egress[n], None)))
                .chain((0..12).map(|n| (region(5 + n), copies(None, ingress[n]))));
            let costs = (0..5).flat_map(|a| (5..17).map(move |b| (a, b))).zip(costs)
                .map(|((a, b), cost)| ((region(a), region(b)), cost));
            let topology = Topology::new(limits, costs);
            let in_flight: Vec<_> = in_flight.into_iter().map(|(a, b)| (region(a), region(b))).collect();
            let copies_started = topology.plan(&from, &to, &in_flight);

            let served: BTreeSet<_> = copies_started.iter().map(|(_, to)| to.clone()).collect();
            prop_assert_eq!(served.len(), copies_started.len(), "each destination once");
            prop_assert!(copies_started.iter().all(|(a, b)| from.contains(a) && to.contains(b)));
            let all: Vec<_> = in_flight.iter().chain(&copies_started).collect();
            let out = |n: usize| all.iter().filter(|(a, _)| *a == region(n)).count();
            let into = |r: &RegionId| all.iter().filter(|(_, b)| b == r).count();
            for (a, b) in &copies_started {
                let index: usize = a.as_str()[1..].parse().expect("a number");
                prop_assert!(egress[index].is_none_or(|limit| out(index) <= limit));
                let index: usize = b.as_str()[1..].parse().expect("a number");
                prop_assert!(ingress[index - 5].is_none_or(|limit| into(b) <= limit));
            }
            let free = (0..sources).any(|n| egress[n].is_none_or(|limit| out(n) < limit));
            for region in to.iter().filter(|region| !served.contains(*region)) {
                let index: usize = region.as_str()[1..].parse().expect("a number");
                prop_assert!(!free || ingress[index - 5].is_some_and(|limit| into(region) >= limit));
            }
        }
    }
}
