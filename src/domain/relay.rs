//! Who feeds whom: a region that has an image can be the source for those that still wait for it. Pure: the plan is made anew
//! whenever something has changed.

use std::collections::BTreeMap;

use super::RegionId;

/// How much may go out of and into a region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegionLimits {
    /// Bytes a second that are read from it.
    pub egress_bytes_per_second: Option<u64>,
    /// Bytes a second that are written to it.
    pub ingress_bytes_per_second: Option<u64>,
    /// Regions that it feeds at the same time.
    pub egress_copies: Option<usize>,
    /// Images that it is fed at the same time.
    pub ingress_copies: Option<usize>,
}

/// What a link costs for which nothing is said.
pub const DEFAULT_COST: u32 = 100;

/// The limits of regions, and what it costs to go from one to another.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    limits: BTreeMap<RegionId, RegionLimits>,
    costs: BTreeMap<(RegionId, RegionId), u32>,
}

impl Topology {
    /// A topology of regions' limits and links' costs.
    #[must_use]
    pub fn new(
        limits: impl IntoIterator<Item = (RegionId, RegionLimits)>,
        costs: impl IntoIterator<Item = ((RegionId, RegionId), u32)>,
    ) -> Self {
        Self { limits: limits.into_iter().collect(), costs: costs.into_iter().collect() }
    }

    /// The bytes a second out of and into each region that has limits.
    pub fn rates(&self) -> impl Iterator<Item = (&RegionId, Option<u64>, Option<u64>)> {
        self.limits.iter().map(|(region, l)| (region, l.egress_bytes_per_second, l.ingress_bytes_per_second))
    }

    /// How many copies may go into each region for which that is limited.
    pub fn copies_into(&self) -> impl Iterator<Item = (&RegionId, usize)> {
        self.limits.iter().filter_map(|(region, limits)| Some((region, limits.ingress_copies?)))
    }

    /// How many regions each region may feed, for those out of which copies or bytes are limited.
    pub fn copies_out_of(&self) -> impl Iterator<Item = (&RegionId, usize)> {
        self.limits.iter().filter_map(|(region, limits)| {
            let limited = limits.egress_copies.is_some() || limits.egress_bytes_per_second.is_some();
            limited.then(|| (region, limits.egress_copies.unwrap_or(usize::MAX)))
        })
    }

    fn limits(&self, region: &RegionId) -> RegionLimits {
        self.limits.get(region).copied().unwrap_or_default()
    }

    /// What it costs to go from one region to another.
    #[must_use]
    pub fn cost(&self, from: &RegionId, to: &RegionId) -> u32 {
        self.costs.get(&(from.clone(), to.clone())).copied().unwrap_or(DEFAULT_COST)
    }

    /// Who of `waiting` is to be fed now, as pairs of source and destination; `feeding` are those that are being fed, whatever
    /// with. `sources` have the image, the first of them being its home. The cheapest links are taken first; among sources that
    /// cost the same, the earlier one, so that whoever can be fed together from one reading is. Whoever finds no source that has
    /// room waits on.
    #[must_use]
    pub fn plan(
        &self,
        sources: &[RegionId],
        waiting: &[RegionId],
        feeding: &[(RegionId, RegionId)],
    ) -> Vec<(RegionId, RegionId)> {
        let count = |is: &dyn Fn(&(RegionId, RegionId)) -> bool| feeding.iter().filter(|feed| is(feed)).count();
        let room = |limit: Option<usize>, taken: usize| limit.map_or(usize::MAX, |limit| limit.saturating_sub(taken));
        let mut out: Vec<usize> = sources
            .iter()
            .map(|source| room(self.limits(source).egress_copies, count(&|(from, _)| from == source)))
            .collect();
        let mut open: Vec<&RegionId> = waiting
            .iter()
            .filter(|region| room(self.limits(region).ingress_copies, count(&|(_, to)| to == *region)) > 0)
            .collect();
        let mut feeds = Vec::new();
        loop {
            // The cheapest of all links that have room; the first of them, where several are.
            let links = open.iter().enumerate().flat_map(|(to, region)| {
                let out = &out;
                let sources =
                    sources.iter().enumerate().filter(move |(from, source)| out[*from] > 0 && source != region);
                sources.map(move |(from, source)| (self.cost(source, region), from, to))
            });
            let Some((_, from, to)) = links.min() else { return feeds };
            out[from] -= 1;
            feeds.push((sources[from].clone(), open.remove(to).clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{RegionLimits, Topology};
    use crate::domain::RegionId;

    fn region(n: usize) -> RegionId {
        format!("r{n}").parse().expect("an id")
    }

    fn copies(egress: Option<usize>, ingress: Option<usize>) -> RegionLimits {
        RegionLimits { egress_copies: egress, ingress_copies: ingress, ..RegionLimits::default() }
    }

    #[test]
    fn without_limits_and_costs_the_home_region_feeds_everybody() {
        let sources = [region(0), region(1)];
        let waiting = [region(2), region(3)];
        let feeds = Topology::default().plan(&sources, &waiting, &[]);
        assert_eq!(feeds, [(region(0), region(2)), (region(0), region(3))]);
    }

    #[test]
    fn a_near_region_feeds_before_a_far_home() {
        let costs = [((region(0), region(2)), 10), ((region(1), region(2)), 1)];
        let topology = Topology::new([], costs);
        assert_eq!(topology.plan(&[region(0), region(1)], &[region(2)], &[]), [(region(1), region(2))]);
    }

    proptest! {
        #[test]
        fn no_limit_is_passed_and_nobody_waits_who_could_be_fed(
            sources in 1..5usize,
            waiting in 0..12usize,
            egress in prop::collection::vec(prop::option::of(0..4usize), 5),
            ingress in prop::collection::vec(prop::option::of(0..2usize), 12),
            costs in prop::collection::vec(1..9u32, 60),
            feeding in prop::collection::vec((0..5usize, 5..17usize), 0..8),
        ) {
            let from: Vec<_> = (0..sources).map(region).collect();
            let to: Vec<_> = (5..5 + waiting).map(region).collect();
            let limits = (0..5).map(|n| (region(n), copies(egress[n], None)))
                .chain((0..12).map(|n| (region(5 + n), copies(None, ingress[n]))));
            let costs = (0..5).flat_map(|a| (5..17).map(move |b| (a, b))).zip(costs)
                .map(|((a, b), cost)| ((region(a), region(b)), cost));
            let topology = Topology::new(limits, costs);
            let feeding: Vec<_> = feeding.into_iter().map(|(a, b)| (region(a), region(b))).collect();
            let feeds = topology.plan(&from, &to, &feeding);

            let fed: BTreeSet<_> = feeds.iter().map(|(_, to)| to.clone()).collect();
            prop_assert_eq!(fed.len(), feeds.len(), "each is fed once");
            prop_assert!(feeds.iter().all(|(a, b)| from.contains(a) && to.contains(b)));
            let all: Vec<_> = feeding.iter().chain(&feeds).collect();
            let out = |n: usize| all.iter().filter(|(a, _)| *a == region(n)).count();
            let into = |r: &RegionId| all.iter().filter(|(_, b)| b == r).count();
            for (a, b) in &feeds {
                let place: usize = a.as_str()[1..].parse().expect("a number");
                prop_assert!(egress[place].is_none_or(|limit| out(place) <= limit));
                let place: usize = b.as_str()[1..].parse().expect("a number");
                prop_assert!(ingress[place - 5].is_none_or(|limit| into(b) <= limit));
            }
            let free = (0..sources).any(|n| egress[n].is_none_or(|limit| out(n) < limit));
            for region in to.iter().filter(|region| !fed.contains(*region)) {
                let place: usize = region.as_str()[1..].parse().expect("a number");
                prop_assert!(!free || ingress[place - 5].is_some_and(|limit| into(region) >= limit));
            }
        }
    }
}
