//! Progress as it happens: a bar a region on a terminal, a line a change elsewhere.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::print;
use crate::contract::v1::{RegionState, RegionSynchronization, Synchronization};

const BAR: &str = "{prefix:16} {bar:28} {binary_bytes:>11}/{binary_total_bytes:<11} {binary_bytes_per_sec:>13}  {msg}";
const TICK: Duration = Duration::from_millis(200);

/// Shows the regions of a synchronization.
pub struct Progress {
    bars: Option<MultiProgress>,
    regions: BTreeMap<String, Shown>,
}

struct Shown {
    bar: ProgressBar,
    line: String,
}

impl Progress {
    /// On a terminal if standard error is one.
    pub fn new() -> Self {
        let bars = io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, regions: BTreeMap::new() }
    }

    /// Shows a snapshot.
    pub fn show(&mut self, synchronization: &Synchronization) {
        for region in &synchronization.regions {
            let bars = self.bars.as_ref();
            let shown = self.regions.entry(region.region_id.clone()).or_insert_with(|| Shown {
                bar: bars.map_or_else(ProgressBar::hidden, |bars| bars.add(bar(&region.region_id))),
                line: String::new(),
            });
            if bars.is_some() {
                draw(&shown.bar, region);
            } else {
                let line = line(region);
                if line != shown.line {
                    eprintln!("{:16} {line}", region.region_id);
                    shown.line = line;
                }
            }
        }
    }

    /// Leaves the last state on the screen.
    pub fn finish(&self) {
        for shown in self.regions.values() {
            shown.bar.abandon();
        }
    }
}

/// A bar for something that is carried.
pub fn bar(prefix: &str) -> ProgressBar {
    // The template is a constant, which a test draws.
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(prefix.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

fn draw(bar: &ProgressBar, region: &RegionSynchronization) {
    let total = region.bytes_total.unsigned_abs();
    let done = region.bytes_copied.saturating_add(region.bytes_skipped).unsigned_abs();
    bar.set_length(total);
    bar.set_position(done);
    let state = region.state();
    let eta = if state == RegionState::Copying && done < total {
        format!("COPYING, {} left", indicatif::HumanDuration(bar.eta()))
    } else {
        message(region)
    };
    bar.set_message(eta);
    if !matches!(state, RegionState::Pending | RegionState::Copying) {
        bar.abandon();
    }
}

fn message(region: &RegionSynchronization) -> String {
    let state = print::region_state(region.state());
    match &region.error {
        Some(error) => format!("{state} after attempt {}: {}", region.attempt, print::error(error)),
        None => state.to_owned(),
    }
}

/// A line that changes when something happens, and with every tenth of the way.
fn line(region: &RegionSynchronization) -> String {
    let done = region.bytes_copied.saturating_add(region.bytes_skipped);
    if region.state() == RegionState::Copying && region.bytes_total > 0 {
        let tenths = done.saturating_mul(10) / region.bytes_total;
        return format!("COPYING {}0 % of {}", tenths, print::bytes(region.bytes_total));
    }
    if region.state() == RegionState::Available {
        let (copied, skipped) = (print::bytes(region.bytes_copied), print::bytes(region.bytes_skipped));
        return format!("AVAILABLE, {copied} copied, {skipped} skipped");
    }
    message(region)
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    #[test]
    fn the_bar_can_be_drawn() {
        ProgressStyle::with_template(super::BAR).expect("a template");
    }
}
