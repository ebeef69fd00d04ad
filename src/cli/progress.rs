//! Progress as it happens: a bar a region on a terminal, a line a change elsewhere.

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
/// Before it is known how much there is to copy.
const WAITING: &str = "{prefix:16} {msg}";
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
                bar: bars
                    .map_or_else(ProgressBar::hidden, |bars| shown_in(bars, &ForeignText::value(&region.region_id))),
                line: String::new(),
            });
            if bars.is_some() {
                draw(&shown.bar, region);
            } else {
                let line = line(region);
                if line != shown.line {
                    print::note(&format!("{:16} {line}", ForeignText::value(&region.region_id).as_str()));
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
    let bar = ProgressBar::new(0).with_style(style(BAR)).with_prefix(prefix.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

/// One bar of several. It is drawn only when it has its place among them.
fn shown_in(bars: &MultiProgress, prefix: &str) -> ProgressBar {
    let bar = bars.add(ProgressBar::new(0).with_style(style(WAITING)).with_prefix(prefix.to_owned()));
    bar.enable_steady_tick(TICK);
    bar
}

/// The templates are constants, which a test draws.
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
        // The bytes are there, and are read again.
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

/// A line that changes when something happens, and with every tenth of the way.
fn line(region: &RegionSynchronization) -> String {
    let done = region.bytes_copied.saturating_add(region.bytes_skipped);
    if region.state() == RegionState::Copying && region.bytes_total > 0 {
        let tenths = done.saturating_mul(10) / region.bytes_total;
        return format!("COPYING {}0 % of {}", tenths, print::bytes(region.bytes_total));
    }
    if region.state() == RegionState::Available {
        let (copied, skipped) = (print::bytes(region.bytes_copied), print::bytes(region.bytes_skipped));
        let warned = match region.warnings.len() {
            0 => "",
            _ => ", with warnings",
        };
        return format!("AVAILABLE, {copied} copied, {skipped} skipped{warned}");
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
