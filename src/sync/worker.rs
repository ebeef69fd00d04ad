//! The loop that claims, and what it does with a claim.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    carriage::{Carriage, Copy},
    destination::{Destination, Meter},
    ecs::EcsCarriage,
    journal::ReplicaJournal,
    limits::Limits,
    pass::Trouble,
    underway::Underway,
};
use crate::{
    domain::{
        Content, Descriptor, EcsImageId, Event, Fault, FaultKind, Image, ImageId, ImageName, Published, RegionId,
        Verification, relay::Topology, with_causes,
    },
    metrics,
    region::{Backend, Ecs, Place, Stage, Store, Stores, Verdict},
    state::{self, Claim, ClaimedRegion, Order, RegionName, Report, State},
};

/// How long to wait before asking a database again that did not answer.
const DATABASE_WAIT: Duration = Duration::from_millis(500);

/// How long it may take to give up what was dropped.
const TIDY: Duration = Duration::from_secs(5);

/// Images of a region that may lend a blob to another one there.
const LENDERS: u64 = 4;

/// How an image is carried.
enum Way {
    /// From one store to the others, blob by blob.
    Blobs(Stores, Descriptor),
    /// By ECS, which knows it by that id.
    Ecs(Ecs, EcsImageId),
}

/// Carries what is due to the regions that it serves.
#[derive(Debug, Clone)]
pub struct Worker {
    pub(super) state: State,
    pub(super) backend: Backend,
    pub(super) settings: Arc<Settings>,
    pub(super) limits: Limits,
}

impl Worker {
    /// A worker on a state and what keeps the images.
    #[must_use]
    pub fn new(state: State, backend: Backend, topology: Topology, settings: Settings) -> Self {
        Self { state, backend, settings: Arc::new(settings), limits: Limits::new(topology) }
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
        let Backend::Stores(stores) = &self.backend else { return };
        let tidying = stream::iter(stores.iter()).for_each_concurrent(None, |(_, store)| store.tidy());
        if tokio::time::timeout(TIDY, tidying).await.is_err() {
            tracing::warn!("not all uploads that were dropped could be given up");
        }
    }

    /// Carries what was claimed, keeps the claims alive meanwhile, and reports on each region as soon as it has ended.
    async fn carry(self, claim: Claim, stop: CancellationToken) {
        let (image, way) = match self.way(claim.image) {
            Ok(found) => found,
            Err(missing) => {
                let fault = Fault { kind: FaultKind::ImageNotFound, message: missing };
                for region in &claim.regions {
                    self.report(&claim.id, failed(region, &Arc::default(), fault.clone(), None)).await;
                }
                return;
            }
        };
        let regions = claim.regions.into_iter().map(|region| Underway::new(&image, region)).collect();
        match way {
            Way::Blobs(stores, root) => {
                let copies = self.copies(&image, &stores, regions).await;
                Carriage::new(&self, stores, image, root, claim.available, copies).run(stop).await;
            }
            Way::Ecs(ecs, source) => EcsCarriage::new(&self, ecs, image, source).run(regions, stop).await,
        }
    }

    /// How an image is carried; if it can't be, why.
    fn way(&self, image: Option<Image>) -> Result<(Image, Way), String> {
        let image = image.ok_or("it was removed")?;
        if let Some(by) = &image.superseded_by {
            return Err(format!("it was superseded by {by}, which has its name now"));
        }
        if !self.backend.has(&image.home) {
            return Err(format!("its home region {} is no longer configured", image.home));
        }
        let way = match (&self.backend, &image.content) {
            (Backend::Stores(stores), Content::Blobs(root)) => Way::Blobs(stores.clone(), root.clone()),
            (Backend::Ecs(ecs), Content::Ecs) => Way::Ecs(ecs.clone(), image.source.0.parse()?),
            (Backend::Stores(_), Content::Ecs) => return Err("it is of ECS, and the regions no longer are".to_owned()),
            (Backend::Ecs(_), Content::Blobs(_)) => return Err("the regions are of ECS now, and it is not".to_owned()),
        };
        Ok((image, way))
    }

    /// What carries an image to each of some regions.
    async fn copies(&self, image: &Image, stores: &Stores, regions: Vec<Underway>) -> BTreeMap<RegionId, Copy> {
        let published = self.published(image, stores, &regions).await;
        let mut copies = BTreeMap::new();
        for underway in regions {
            let ClaimedRegion { region, fence, suspect, overwrite, .. } = &underway.claimed;
            let Some(store) = stores.get(region).cloned() else { continue };
            let location = location(&*store, &store.name_of(image));
            let journal = ReplicaJournal::new(self.state.clone(), image.id.clone(), region.clone(), *fence, location);
            let stage = Stage {
                suspect: *suspect,
                lenders: self.lenders(image, stores, region, &*store).await,
                published: published.get(region).cloned().unwrap_or_default(),
                overwrite: *overwrite,
                ..Stage::new(store.name_of(image), *fence, Arc::new(journal))
            };
            let lost = CancellationToken::new();
            let destination = Destination {
                region: region.clone(),
                store,
                stage,
                meter: Arc::clone(&underway.meter),
                lost: lost.clone(),
                paces: self.limits.paces(region),
                resumed: 0,
                rest: Duration::ZERO,
            };
            copies.insert(region.clone(), Copy { underway, destination, lost, fed: None });
        }
        copies
    }

    /// What was published by an image's name in each of some regions.
    async fn published(&self, image: &Image, stores: &Stores, regions: &[Underway]) -> BTreeMap<RegionId, Published> {
        let names: Vec<RegionName> = regions
            .iter()
            .filter_map(|underway| {
                let region = underway.claimed.region.clone();
                let store = stores.get(&region)?;
                let name = store.name_of(image);
                Some(RegionName { region, location: location(&**store, &name), name })
            })
            .collect();
        self.state.published(&names).await.unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), image = %image.id, "what was published is not known; every part will be looked for");
            BTreeMap::new()
        })
    }

    /// Where blobs of an image may be taken from without carrying them.
    async fn lenders(&self, image: &Image, stores: &Stores, region: &RegionId, store: &dyn Store) -> Arc<[Place]> {
        let Some(own) = store.place(&store.name_of(image)) else { return Arc::default() };
        let home = stores.get(&image.home).and_then(|home| home.place(&image.source));
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
    pub(super) async fn conclude(&self, image: &ImageId, underway: Underway, result: Result<Verification, Trouble>) {
        let Underway { claimed, span, meter, began, running } = underway;
        drop(running);
        let progress = meter.read();
        span.record("appferry.bytes_copied", progress.copied);
        span.record("appferry.bytes_skipped", progress.skipped);
        let report = match result {
            Ok(verification) => {
                let state = "AVAILABLE";
                metrics::copied(&claimed.region, state, began.elapsed(), progress.copied, progress.skipped);
                span.record("appferry.state", state);
                tracing::info!(parent: &span, %image, region = %claimed.region, copied = progress.copied, skipped = progress.skipped, %verification, "the image is available");
                Report {
                    region: claimed.region,
                    event: Event::Verified { fence: claimed.fence, progress, verification },
                }
            }
            Err(trouble) => {
                let (fault, retry) = judge(&trouble);
                let jitter = rand::random::<f64>();
                let wait = if retry { self.settings.backoff.wait(claimed.faults, jitter) } else { None };
                // A store that says when it wants to be asked again knows better.
                let retry_after = wait.map(|wait| wait.max(trouble.error().retry_after().unwrap_or_default()));
                let state = if retry_after.is_some() { "PENDING" } else { "FAILED" };
                metrics::copied(&claimed.region, state, began.elapsed(), progress.copied, progress.skipped);
                span.record("appferry.state", state);
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

/// Where a store has an image, if it says so.
fn location(store: &dyn Store, name: &ImageName) -> Option<String> {
    store.place(name).map(|Place { service, path }| format!("{service} {path}"))
}

fn failed(claimed: &ClaimedRegion, meter: &Arc<Meter>, fault: Fault, retry_after: Option<Duration>) -> Report {
    let event = Event::Faulted { fence: claimed.fence, fault, retry_after, progress: meter.read() };
    Report { region: claimed.region.clone(), event }
}

/// What a region shows of its trouble, and whether trying again is of any use.
fn judge(trouble: &Trouble) -> (Fault, bool) {
    let (kind, error) = match trouble {
        Trouble::Source { error, .. } if error.is_missing() => (FaultKind::ImageNotFound, error),
        Trouble::Source { error, .. } | Trouble::Destination(error) => (error.fault_kind(), error),
    };
    (Fault { kind, message: trouble.to_string() }, error.verdict() == Verdict::Retry)
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a pass ended badly; its leases will run out");
    }
}
