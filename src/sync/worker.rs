//! The loop that claims, and what it does with a claim.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{
    Settings,
    destination::{Destination, Meter},
    heartbeat::{Heartbeat, Held},
    pass::{Pass, Trouble},
    pump::Waits,
    tracing_links::tie,
};
use crate::{
    domain::{Event, Fault, FaultKind, ImageId, ImageName, RegionId},
    region::{Error, Stage, Stores, Verdict},
    state::{Claim, ClaimedRegion, Report, State},
};

/// How long to wait before asking a database again that did not answer.
const DATABASE_WAIT: Duration = Duration::from_millis(500);

/// Carries what is due to the regions that it serves.
#[derive(Debug, Clone)]
pub struct Worker {
    state: State,
    stores: Stores,
    settings: Arc<Settings>,
}

impl Worker {
    /// A worker on a state and some stores.
    #[must_use]
    pub fn new(state: State, stores: Stores, settings: Settings) -> Self {
        Self { state, stores, settings: Arc::new(settings) }
    }

    /// Works until `stop` is canceled; then hands back what it holds and returns.
    pub async fn run(self, stop: CancellationToken) {
        let mut passes = JoinSet::new();
        let mut seen = 0;
        while !stop.is_cancelled() {
            let mut wait = self.settings.poll.mul_f64(1.0 - rand::random::<f64>() / 4.0);
            if passes.len() < self.settings.concurrency {
                let Settings { id, regions, lease, .. } = &*self.settings;
                match self.state.replica_claim(id, regions, *lease).await {
                    Ok(Some(claim)) => {
                        passes.spawn(self.clone().carry(claim, stop.clone()));
                        continue;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "nothing can be claimed for now");
                        wait = DATABASE_WAIT;
                    }
                }
            }
            tokio::select! {
                () = self.state.due(&mut seen, wait), if passes.len() < self.settings.concurrency => {}
                Some(ended) = passes.join_next() => log_panic(ended),
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = passes.join_next().await {
            log_panic(ended);
        }
    }

    /// Carries what was claimed, keeps the claims alive meanwhile, and reports on each region as soon as it has ended.
    async fn carry(self, claim: Claim, stop: CancellationToken) {
        let image = claim.image.id.clone();
        let Some(source) = self.stores.get(&claim.image.home).cloned() else {
            let fault = Fault {
                kind: FaultKind::ImageNotFound,
                message: format!("its home region {} is no longer configured", claim.image.home),
            };
            for region in &claim.regions {
                self.report(&image, failed(region, &Arc::default(), fault.clone(), None)).await;
            }
            return;
        };
        let mut copies = BTreeMap::new();
        let mut destinations = Vec::new();
        for region in claim.regions {
            let Some(store) = self.stores.get(&region.region).cloned() else { continue };
            let span = tracing::info_span!(
                "copy",
                otel.name = format!("copy {}", region.region),
                otel.status_code = tracing::field::Empty,
                otel.status_description = tracing::field::Empty,
                appferry.app_id = %image,
                appferry.region_id = %region.region,
                appferry.attempt = region.attempt,
                appferry.bytes_total = claim.image.size,
                appferry.bytes_copied = tracing::field::Empty,
                appferry.bytes_skipped = tracing::field::Empty,
                appferry.state = tracing::field::Empty,
            );
            tie(&span, region.attempt, &region.traces);
            let stage = Stage { name: ImageName(image.to_string()), fence: region.fence };
            let meter = Arc::<Meter>::default();
            let lost = CancellationToken::new();
            let destination = Destination {
                region: region.region.clone(),
                store,
                stage,
                meter: Arc::clone(&meter),
                lost: lost.clone(),
            };
            destinations.push((destination, span.clone()));
            copies.insert(region.region.clone(), Copy { claimed: region, meter, span, lost });
        }
        let pass = Arc::new(Pass {
            home: claim.image.home,
            source,
            name: claim.image.source,
            root: claim.image.root,
            waits: Waits { patience: self.settings.patience, stall: self.settings.stall },
        });
        self.supervise(&image, pass, destinations, copies, stop).await;
    }

    async fn supervise(
        &self,
        image: &ImageId,
        pass: Arc<Pass>,
        destinations: Vec<super::pass::Tracked>,
        mut copies: BTreeMap<RegionId, Copy>,
        stop: CancellationToken,
    ) {
        let (ended, mut ends) = mpsc::channel(destinations.len().max(1));
        let mut heartbeat = Heartbeat::new(image.clone(), self.settings.lease, self.settings.heartbeat);
        let mut running = JoinSet::new();
        running.spawn(pass.run(destinations, ended));
        while !copies.is_empty() {
            let held: Vec<Held> = copies.values().map(Copy::held).collect();
            let lost = tokio::select! {
                end = ends.recv() => match end {
                    Some((region, result)) => {
                        if let Some(copy) = copies.remove(&region) {
                            self.conclude(image, copy, result).await;
                        }
                        continue;
                    }
                    // The pass is over and has not told of the rest: it ended badly.
                    None => {
                        for copy in std::mem::take(&mut copies).into_values() {
                            self.conclude(image, copy, Err(Trouble::Destination(Arc::new(Error::Interrupted)))).await;
                        }
                        break;
                    }
                },
                lost = heartbeat.beat(&self.state, &held) => lost,
                () = stop.cancelled() => break,
            };
            for region in lost {
                if let Some(copy) = copies.remove(&region) {
                    copy.lost.cancel();
                    copy.span.record("appferry.state", "LOST");
                    tracing::info!(parent: &copy.span, %image, %region, "the copy was canceled or taken over");
                }
            }
        }
        // Whatever is still being copied has no claim any more, or is handed back: it must not write on.
        running.shutdown().await;
        for copy in copies.into_values() {
            copy.span.record("appferry.state", "RELEASED");
            let event = Event::Release { fence: copy.claimed.fence };
            self.report(image, Report { region: copy.claimed.region, event }).await;
        }
    }

    async fn conclude(&self, image: &ImageId, copy: Copy, result: Result<(), Trouble>) {
        let progress = copy.meter.read();
        let Copy { claimed, span, meter, .. } = copy;
        span.record("appferry.bytes_copied", progress.copied);
        span.record("appferry.bytes_skipped", progress.skipped);
        let report = match result {
            Ok(()) => {
                span.record("appferry.state", "AVAILABLE");
                tracing::info!(parent: &span, %image, region = %claimed.region, copied = progress.copied, skipped = progress.skipped, "the image is available");
                Report { region: claimed.region, event: Event::Verified { fence: claimed.fence, progress } }
            }
            Err(trouble) => {
                let (fault, retry) = judge(&trouble);
                let jitter = rand::random::<f64>();
                let retry_after = if retry { self.settings.backoff.wait(claimed.faults, jitter) } else { None };
                span.record("appferry.state", if retry_after.is_some() { "PENDING" } else { "FAILED" });
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", fault.message.as_str());
                tracing::warn!(parent: &span, %image, region = %claimed.region, %fault, ?retry_after, "the copy failed");
                failed(&claimed, &meter, fault, retry_after)
            }
        };
        drop(span);
        self.report(image, report).await;
    }

    /// Reports, and goes on trying while the claim may still be good.
    async fn report(&self, image: &ImageId, report: Report) {
        let deadline = tokio::time::Instant::now() + self.settings.lease;
        loop {
            match self.state.replica_report(image, report.clone()).await {
                Ok(Ok(())) => return,
                Ok(Err(stale)) => {
                    tracing::info!(%image, region = %report.region, "the report came too late: {stale}");
                    return;
                }
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    tracing::error!(%error, %image, region = %report.region, "the report could not be written");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, %image, region = %report.region, "the report can't be written for now");
                    tokio::time::sleep(DATABASE_WAIT).await;
                }
            }
        }
    }
}

/// One copy of a pass.
#[derive(Debug)]
struct Copy {
    claimed: ClaimedRegion,
    meter: Arc<Meter>,
    span: Span,
    lost: CancellationToken,
}

impl Copy {
    fn held(&self) -> Held {
        Held { region: self.claimed.region.clone(), fence: self.claimed.fence, meter: Arc::clone(&self.meter) }
    }
}

fn failed(claimed: &ClaimedRegion, meter: &Arc<Meter>, fault: Fault, retry_after: Option<Duration>) -> Report {
    let event = Event::Faulted { fence: claimed.fence, fault, retry_after, progress: meter.read() };
    Report { region: claimed.region.clone(), event }
}

/// What a region shows of its trouble, and whether trying again is of any use.
fn judge(trouble: &Trouble) -> (Fault, bool) {
    let (kind, error) = match trouble {
        Trouble::Source { error, .. } if error.is_missing() => (FaultKind::ImageNotFound, error),
        Trouble::Source { error, .. } | Trouble::Destination(error) => (FaultKind::Store, error),
    };
    (Fault { kind, message: trouble.to_string() }, error.verdict() == Verdict::Retry)
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a pass ended badly; its leases will run out");
    }
}
