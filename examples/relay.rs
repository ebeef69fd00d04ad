//! Simulates how long an image takes to reach every region when the egress of its home region is limited: with a star,
//! in which only the home region sends, and with the relay plan of the workers, in which every region that has the
//! image sends; relative to the lower bounds for plans of whole copies. Each region is served by its own worker, so
//! that every copy takes its share of its source's egress. The unit of time is one copy: what one region takes to
//! receive the image over the whole of one region's egress.
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
        // Every region that has the image can send it: with whole copies, the number of copies at most doubles in the
        // time of one.
        let bound = (f64::from(count) + 1.0).log2().ceil();
        println!("{count:7}  {at_once:7}  {star:4.0}  {plan:4.0}  {bound:5.0}  {:10.2}", plan / bound);
        println!("ratio relay_{count}_{at_once}_at_once_of_star {:.3}", plan / star);
    }
    Ok(())
}

/// A copy in progress: its end, its region and its source. The maximum is the copy that ends first.
#[derive(PartialEq)]
struct Copy {
    until: f64,
    to: usize,
    from: usize,
}

impl Eq for Copy {}

impl Ord for Copy {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.until.total_cmp(&self.until).then(other.to.cmp(&self.to))
    }
}

impl PartialOrd for Copy {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Returns the time at which the last region has the image, if each source sends to at most `at_once` regions
/// concurrently, sharing its egress.
fn finish(regions: &[RegionId], at_once: u32, relays: bool) -> f64 {
    let limits = RegionLimits { egress_copies: usize::try_from(at_once).ok(), ..RegionLimits::default() };
    let topology = Topology::new(regions.iter().map(|region| (region.clone(), limits)), []);
    let place = |region: &RegionId| regions.iter().position(|known| known == region).unwrap_or_default();
    let mut sources = vec![regions[0].clone()];
    let mut waiting: Vec<RegionId> = regions[1..].to_vec();
    let mut under_way: BinaryHeap<Copy> = BinaryHeap::new();
    let mut now = 0.0;
    loop {
        let feeding: Vec<(RegionId, RegionId)> =
            under_way.iter().map(|copy| (regions[copy.from].clone(), regions[copy.to].clone())).collect();
        for (from, to) in topology.plan(&sources, &waiting, &feeding) {
            waiting.retain(|region| *region != to);
            under_way.push(Copy { until: now + f64::from(at_once), to: place(&to), from: place(&from) });
        }
        let Some(done) = under_way.pop() else { return now };
        now = done.until;
        if relays {
            sources.push(regions[done.to].clone());
        }
    }
}
