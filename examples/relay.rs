//! Simulates how long an image takes to reach every region when the egress of each region is limited. Compares two
//! plans: a star, in which the home region feeds all others, and the plan of the workers, in which every region that
//! has the image feeds others. Compares both with the lower bound for whole copies.
//!
//! Each region has a worker of its own, so that every copy gets its share of the source's egress. The unit of time is
//! the duration of one copy that uses the whole egress of one region.
//!
//! `cargo run --release --example relay`

use std::collections::BinaryHeap;

use appferry::domain::{
    RegionId,
    relay::{RegionLimits, Topology},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("regions  at once  star  plan  bound  plan/bound");
    for (count, at_once) in [10, 30, 100].into_iter().flat_map(|count| [(count, 1), (count, 2)]) {
        let regions = (0..=count).map(|n| format!("region-{n}").parse()).collect::<Result<Vec<RegionId>, _>>()?;
        let star = finish(&regions, at_once, false);
        let plan = finish(&regions, at_once, true);
        // Every region that has the image can feed others, so the number of these regions can double in the time of one
        // copy.
        let bound = (f64::from(count) + 1.0).log2().ceil();
        println!("{count:7}  {at_once:7}  {star:4.0}  {plan:4.0}  {bound:5.0}  {:10.2}", plan / bound);
        println!("ratio relay_{count}_{at_once}_at_once_of_star {:.3}", plan / star);
    }
    Ok(())
}

/// A copy in progress. The copy that ends first is the greatest, because a heap returns its greatest element.
#[derive(PartialEq)]
struct ActiveCopy {
    end: f64,
    destination: usize,
    source: usize,
}

impl Eq for ActiveCopy {}

impl Ord for ActiveCopy {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.end.total_cmp(&self.end).then(other.destination.cmp(&self.destination))
    }
}

impl PartialOrd for ActiveCopy {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Returns the time at which the last region has the image, if each region feeds at most `at_once` others concurrently.
fn finish(regions: &[RegionId], at_once: u32, relays: bool) -> f64 {
    let limits = RegionLimits { egress_copies: usize::try_from(at_once).ok(), ..RegionLimits::default() };
    let topology = Topology::new(regions.iter().map(|region| (region.clone(), limits)), []);
    let index = |region: &RegionId| regions.iter().position(|other| other == region).unwrap_or_default();
    let mut sources = vec![regions[0].clone()];
    let mut waiting: Vec<RegionId> = regions[1..].to_vec();
    let mut active: BinaryHeap<ActiveCopy> = BinaryHeap::new();
    let mut now = 0.0;
    loop {
        let feeding: Vec<(RegionId, RegionId)> =
            active.iter().map(|copy| (regions[copy.source].clone(), regions[copy.destination].clone())).collect();
        for (from, to) in topology.plan(&sources, &waiting, &feeding) {
            waiting.retain(|region| *region != to);
            active.push(ActiveCopy { end: now + f64::from(at_once), destination: index(&to), source: index(&from) });
        }
        let Some(done) = active.pop() else { return now };
        now = done.end;
        if relays {
            sources.push(regions[done.destination].clone());
        }
    }
}
