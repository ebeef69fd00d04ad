//! Shows the progress of a synchronization: a bar per region on a terminal, a line per change elsewhere.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::print;
use crate::{
    contract::v1::{RegionState, RegionSynchronization, Synchronization},
    domain::ForeignText,
};

const BAR: &str = "{prefix:16} {bar:28} {binary_bytes:>11}/{binary_total_bytes:<11} {binary_bytes_per_sec:>13}  {msg}";
/// The template of a bar before the total is known.
const WAITING: &str = "{prefix:16} {msg}";
const TICK: Duration = Duration::from_millis(200);

/// The progress of a synchronization's regions.
pub struct Progress {
    bars: Option<MultiProgress>,
    regions: BTreeMap<String, RegionProgress>,
}

struct RegionProgress {
    bar: ProgressBar,
    line: String,
}

impl Progress {
    /// Creates a display that draws bars if standard error is a terminal, and prints lines otherwise.
    pub fn new() -> Self {
        let bars = io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, regions: BTreeMap::new() }
    }

    /// Updates the bars, or prints the lines that have changed.
    pub fn show(&mut self, synchronization: &Synchronization) {
        for region in &synchronization.regions {
            let bars = self.bars.as_ref();
            let progress = self.regions.entry(region.region_id.clone()).or_insert_with(|| RegionProgress {
                bar: bars
                    .map_or_else(ProgressBar::hidden, |bars| add_bar(bars, &ForeignText::value(&region.region_id))),
                line: String::new(),
            });
            if bars.is_some() {
                draw(&progress.bar, region);
            } else {
                let line = line(region);
                if line != progress.line {
                    print::note(&format!("{:16} {line}", ForeignText::value(&region.region_id).as_str()));
                    progress.line = line;
                }
            }
        }
    }

    /// Ends the bars and leaves their last state on the screen.
    pub fn finish(&self) {
        for progress in self.regions.values() {
            progress.bar.abandon();
        }
    }
}

/// Returns a bar for a single transfer.
pub fn bar(prefix: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_style(style(BAR)).with_prefix(prefix.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

/// Adds a bar for a region. The steady tick, which draws the bar, starts once the bar is part of `bars`.
fn add_bar(bars: &MultiProgress, prefix: &str) -> ProgressBar {
    let bar = bars.add(ProgressBar::new(0).with_style(style(WAITING)).with_prefix(prefix.to_owned()));
    bar.enable_steady_tick(TICK);
    bar
}

/// Builds a style. The fallback is never used: the templates are constants, and a test parses them.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

fn draw(bar: &ProgressBar, region: &RegionSynchronization) {
    let total = region.bytes_total.unsigned_abs();
    let done = region.bytes_copied.saturating_add(region.bytes_skipped).unsigned_abs();
    if total > 0 && bar.length() == Some(0) {
        bar.set_style(style(BAR));
    }
    bar.set_length(total);
    bar.set_position(done);
    let state = region.state();
    bar.set_message(match bar.eta() {
        _ if state != RegionState::Copying || total == 0 => message(region),
        // All bytes are written and are being verified.
        left if left.as_secs() == 0 => "COPYING, verifying".to_owned(),
        left => format!("COPYING, {} left", indicatif::HumanDuration(left)),
    });
    if !matches!(state, RegionState::Pending | RegionState::Copying) {
        bar.abandon();
    }
}

fn message(region: &RegionSynchronization) -> String {
    let state = print::available_as(region.state(), region.verification());
    match &region.error {
        Some(error) => format!("{state} after attempt {}: {}", region.attempt, print::error(error)),
        None => state,
    }
}

/// Returns a line that changes with the region's state and with every tenth of the bytes.
fn line(region: &RegionSynchronization) -> String {
    let done = region.bytes_copied.saturating_add(region.bytes_skipped);
    if region.state() == RegionState::Copying && region.bytes_total > 0 {
        let tenths = done.saturating_mul(10) / region.bytes_total;
        return format!("COPYING {}0 % of {}", tenths, print::bytes(region.bytes_total));
    }
    if region.state() == RegionState::Available {
        let (copied, skipped) = (print::bytes(region.bytes_copied), print::bytes(region.bytes_skipped));
        let suffix = match region.warnings.len() {
            0 => "",
            _ => ", with warnings",
        };
        return format!("AVAILABLE, {copied} copied, {skipped} skipped{suffix}");
    }
    message(region)
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    #[test]
    fn the_bars_can_be_drawn() {
        for template in [super::BAR, super::WAITING] {
            ProgressStyle::with_template(template).expect("a template");
        }
    }
}
