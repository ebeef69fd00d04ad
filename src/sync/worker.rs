//! The loop that claims, and what it does with a claim.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    carriage::{Carriage, Copy},
    destination::{Destination, Meter},
    journal::ReplicaJournal,
    limits::Limits,
    pass::Trouble,
    tracing_links::tie,
};
use crate::{
    domain::{Event, Fault, FaultKind, Image, ImageId, RegionId, relay::Topology, with_causes},
    region::{Place, Stage, Store, Stores, Verdict},
    state::{self, Claim, ClaimedRegion, Order, Report, State},
};

/// How long to wait before asking a database again that did not answer.
const DATABASE_WAIT: Duration = Duration::from_millis(500);

/// How long it may take to give up what was dropped.
const TIDY: Duration = Duration::from_secs(5);

/// Images of a region that may lend a blob to another one there.
const LENDERS: u64 = 4;

/// Carries what is due to the regions that it serves.
#[derive(Debug, Clone)]
pub struct Worker {
    pub(super) state: State,
    pub(super) stores: Stores,
    pub(super) settings: Arc<Settings>,
    pub(super) limits: Limits,
}

impl Worker {
    /// A worker on a state and some stores.
    #[must_use]
    pub fn new(state: State, stores: Stores, topology: Topology, settings: Settings) -> Self {
        Self { state, stores, settings: Arc::new(settings), limits: Limits::new(topology) }
    }

    /// Works until `stop` is canceled; then hands back what it holds and returns.
    pub async fn run(self, stop: CancellationToken) {
        let mut passes = JoinSet::new();
        let follow = self.limits.clone().follow(self.state.clone(), self.settings.id.clone(), stop.clone());
        let follow = tokio::spawn(follow);
        let mut seen = 0;
        while !stop.is_cancelled() {
            // Not all at once, where many look by themselves.
            let mut wait = self.settings.poll.mul_f64(1.0 - rand::random::<f64>() / 4.0);
            let free = self.settings.concurrency.saturating_sub(passes.len());
            if free > 0 {
                match self.claim(free).await {
                    Ok(claims) if !claims.is_empty() => {
                        for claim in claims {
                            passes.spawn(self.clone().carry(claim, stop.clone()));
                        }
                        continue;
                    }
                    Ok(_) => self.tidy().await,
                    Err(error) => {
                        tracing::warn!(error = with_causes(&error), "nothing can be claimed for now");
                        wait = DATABASE_WAIT;
                    }
                }
            }
            tokio::select! {
                () = self.state.due(&mut seen, wait), if free > 0 => {}
                Some(ended) = passes.join_next() => log_panic(ended),
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = passes.join_next().await {
            log_panic(ended);
        }
        log_panic(follow.await);
    }

    async fn claim(&self, images: usize) -> state::Result<Vec<Claim>> {
        let Settings { id, regions, lease, .. } = &*self.settings;
        let limits = self.limits.copies_into();
        let draw = rand::random_range(0..usize::MAX);
        self.state.replica_claim(Order { owner: id, regions, lease: *lease, images, limits, draw }).await
    }

    /// Gives up what passes of this process have dropped unfinished.
    pub(super) async fn tidy(&self) {
        let tidying = stream::iter(self.stores.iter()).for_each_concurrent(None, |(_, store)| store.tidy());
        if tokio::time::timeout(TIDY, tidying).await.is_err() {
            tracing::warn!("not all uploads that were dropped could be given up");
        }
    }

    /// Carries what was claimed, keeps the claims alive meanwhile, and reports on each region as soon as it has ended.
    async fn carry(self, claim: Claim, stop: CancellationToken) {
        let missing = match &claim.image {
            None => Some("it was removed".to_owned()),
            Some(image) if self.stores.get(&image.home).is_none() => {
                Some(format!("its home region {} is no longer configured", image.home))
            }
            Some(_) => None,
        };
        let (Some(image), None) = (claim.image, &missing) else {
            let fault = Fault { kind: FaultKind::ImageNotFound, message: missing.unwrap_or_default() };
            for region in &claim.regions {
                self.report(&claim.id, failed(region, &Arc::default(), fault.clone(), None)).await;
            }
            return;
        };
        let mut copies = BTreeMap::new();
        for region in claim.regions {
            let Some(store) = self.stores.get(&region.region).cloned() else { continue };
            let span = tracing::info_span!(
                "copy",
                otel.name = format!("copy {}", region.region),
                otel.status_code = tracing::field::Empty,
                otel.status_description = tracing::field::Empty,
                appferry.app_id = %image.id,
                appferry.region_id = %region.region,
                appferry.source_region_id = tracing::field::Empty,
                appferry.attempt = region.attempt,
                appferry.bytes_total = image.size,
                appferry.bytes_copied = tracing::field::Empty,
                appferry.bytes_skipped = tracing::field::Empty,
                appferry.state = tracing::field::Empty,
            );
            tie(&span, region.attempt, &region.traces);
            let journal =
                ReplicaJournal::new(self.state.clone(), image.id.clone(), region.region.clone(), region.fence);
            let stage = Stage {
                name: store.name_of(&image),
                fence: region.fence,
                suspect: region.suspect,
                lenders: self.lenders(&image, &region.region, &*store).await,
                journal: Arc::new(journal),
            };
            let meter = Arc::<Meter>::default();
            let lost = CancellationToken::new();
            let destination = Destination {
                region: region.region.clone(),
                store,
                stage,
                meter: Arc::clone(&meter),
                lost: lost.clone(),
                paces: self.limits.paces(&region.region),
                resumed: 0,
                rest: Duration::ZERO,
            };
            copies.insert(region.region.clone(), Copy { claimed: region, destination, meter, span, lost, fed: None });
        }
        Carriage::new(&self, image, claim.available, copies).run(stop).await;
    }

    /// Where blobs of an image may be taken from without carrying them.
    async fn lenders(&self, image: &Image, region: &RegionId, store: &dyn Store) -> Arc<[Place]> {
        let Some(own) = store.place(&store.name_of(image)) else { return Arc::default() };
        let home = self.stores.get(&image.home).and_then(|home| home.place(&image.source));
        let others = self.state.images_in(region, &image.id, LENDERS).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "who could lend blobs is not known");
            Vec::new()
        });
        let others = others.iter().filter_map(|other| store.place(&store.name_of(other)));
        let mut lenders: Vec<Place> = Vec::new();
        for place in home.into_iter().chain(others) {
            if place.service == own.service && place != own && !lenders.contains(&place) {
                lenders.push(place);
            }
        }
        lenders.into()
    }

    /// Reports how the copy of a region ended.
    pub(super) async fn conclude(&self, image: &ImageId, copy: Copy, result: Result<(), Trouble>) {
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
                let wait = if retry { self.settings.backoff.wait(claimed.faults, jitter) } else { None };
                // A store that says when it wants to be asked again knows better.
                let retry_after = wait.map(|wait| wait.max(trouble.error().retry_after().unwrap_or_default()));
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
    pub(super) async fn report(&self, image: &ImageId, report: Report) {
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
