//! One image on its way to the regions that were claimed for it: which region feeds which, the claims kept alive meanwhile, and how each
//! copy ends. Regions that are claimed later for the same image join the job, and are fed with the others from where these are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::mpsc,
    task::{self, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Worker,
    active_copy::ActiveCopy,
    heartbeat::{Heartbeat, HeldClaim},
    journal::ReplicaJournal,
    retract::retract_canceled,
    slots::Slot,
    transfer::{Copied, CopyError, Destination, ImageSource, Transfer, Waits},
};
use crate::{
    db::{ClaimedRegion, RegionName, Report},
    domain::{Descriptor, Digest, Event, Image, ImageId, ImageName, Published, RegionId, with_causes},
    metrics,
    region::{Error, Place, Stage, Store, Stores},
};

/// Images of a region from which a blob may be mounted.
const MOUNT_SOURCES: u64 = 4;
/// How long it may take to abort what was dropped unfinished.
const ABORT: Duration = Duration::from_secs(5);

/// Which image a job copies: one of the same id may be registered again with another root.
pub type JobKey = (ImageId, Digest);

/// Regions that were claimed together.
#[derive(Debug)]
pub struct Joining {
    /// Their copies.
    pub copies: Vec<ActiveCopy>,
    /// Regions that have the image already.
    pub available: Vec<RegionId>,
}

/// One region of the job.
#[derive(Debug)]
struct Copy {
    active: ActiveCopy,
    destination: Destination,
    /// Canceled when the claim is lost.
    lost: CancellationToken,
    /// While it is fed: its slot at the source, and its task.
    fed: Option<(Slot, task::Id)>,
}

/// An image on its way.
#[derive(Debug)]
pub struct CopyJob {
    worker: Worker,
    stores: Stores,
    image: Image,
    root: Descriptor,
    /// The regions that have the image and a store, its home first.
    sources: Vec<RegionId>,
    /// Why sources that are no longer asked failed; the home region's reason, if it is one of them.
    source_failed: Option<CopyError>,
    /// The regions that have not got it yet.
    copies: BTreeMap<RegionId, Copy>,
    /// What is read from each source.
    transfers: BTreeMap<RegionId, Arc<Transfer>>,
    tasks: JoinSet<Result<Copied, CopyError>>,
    /// What is taken back of copies that were canceled.
    retractions: JoinSet<()>,
    /// Every region that it has begun with.
    served: BTreeSet<RegionId>,
    joining: mpsc::Receiver<Joining>,
}

/// How the task of a copy ended.
type Ended = Result<(task::Id, Result<Copied, CopyError>), task::JoinError>;

impl CopyJob {
    /// A job without regions: the first are given to [`CopyJob::run`], and others come by the channel.
    pub fn new(
        worker: Worker,
        stores: Stores,
        image: Image,
        root: Descriptor,
        joining: mpsc::Receiver<Joining>,
    ) -> Self {
        Self {
            worker,
            stores,
            image,
            root,
            sources: Vec::new(),
            source_failed: None,
            copies: BTreeMap::new(),
            transfers: BTreeMap::new(),
            tasks: JoinSet::new(),
            retractions: JoinSet::new(),
            served: BTreeSet::new(),
            joining,
        }
    }

    /// Copies the image to each of the regions, and reports on each as soon as it has ended.
    pub async fn run(mut self, first: Joining, stop: CancellationToken) -> JobKey {
        let settings = Arc::clone(&self.worker.settings);
        let mut heartbeat = Heartbeat::new(self.image.id.clone(), settings.lease, settings.heartbeat);
        self.join(first).await;
        loop {
            self.feed().await;
            if self.copies.is_empty() {
                // Regions that are on their way here are taken along; later ones get a job of their own.
                self.joining.close();
                let Ok(joining) = self.joining.try_recv() else { break };
                self.join(joining).await;
                continue;
            }
            let held: Vec<HeldClaim> = self.copies.values().map(|copy| copy.active.held()).collect();
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
                lost = heartbeat.beat(&self.worker.state, &held) => self.lose(lost),
                Some(joining) = self.joining.recv() => self.join(joining).await,
                () = self.worker.limits.freed() => {}
                () = stop.cancelled() => break,
            }
        }
        self.release().await;
        self.retracted().await;
        self.abort_dropped().await;
        (self.image.id, self.root.digest)
    }

    /// Stops what is still being copied, and hands the claims back: it must not write any further.
    async fn release(&mut self) {
        self.joining.close();
        while let Ok(joining) = self.joining.try_recv() {
            self.join(joining).await;
        }
        for copy in self.copies.values() {
            copy.lost.cancel();
        }
        self.tasks.shutdown().await;
        for copy in std::mem::take(&mut self.copies).into_values() {
            // What was written need not be doubted by the next claim.
            if let Err(error) = copy.destination.stage.journal.save().await {
                tracing::debug!(%error, region = %copy.destination.region, "failed to save written blobs");
            }
            let ActiveCopy { claimed, span, .. } = &copy.active;
            span.record("appferry.state", "RELEASED");
            let event = Event::Release { fence: claimed.fence };
            self.worker.report(&self.image.id, Report { region: claimed.region.clone(), event }).await;
        }
    }

    /// Waits until everything is taken back that is to be, or for as long as a store may take to abort something.
    async fn retracted(&mut self) {
        let all = async { while self.retractions.join_next().await.is_some() {} };
        if tokio::time::timeout(ABORT, all).await.is_err() {
            tracing::warn!(image = %self.image.id, "failed to withdraw canceled images in time");
        }
    }

    /// Has the stores abort what was begun there and dropped unfinished: side by side, and each with a deadline.
    async fn abort_dropped(&self) {
        let stores = self.stores.iter().filter(|(region, _)| self.served.contains(*region));
        let aborting = stream::iter(stores).for_each_concurrent(None, |(region, store)| async move {
            if tokio::time::timeout(ABORT, store.tidy()).await.is_err() {
                tracing::warn!(%region, "failed to abort all uploads that were dropped in time");
            }
        });
        aborting.await;
    }

    async fn join(&mut self, joining: Joining) {
        for source in std::iter::once(self.image.home.clone()).chain(joining.available) {
            // A region that is not configured here can't be read.
            if self.stores.get(&source).is_some() && !self.sources.contains(&source) {
                self.sources.push(source);
            }
        }
        let mut published = self.published(&joining.copies).await;
        for active in joining.copies {
            let region = active.claimed.region.clone();
            let Some(store) = self.stores.get(&region).cloned() else { continue };
            // A claim of this region that is still here was overtaken by this one.
            self.lose(vec![region.clone()]);
            let destination = self.destination(&active, store, published.remove(&region).unwrap_or_default()).await;
            let lost = CancellationToken::new();
            self.served.insert(region.clone());
            self.copies.insert(region, Copy { active, destination, lost, fed: None });
        }
    }

    /// What was published by the image's name in each of some regions.
    async fn published(&self, copies: &[ActiveCopy]) -> BTreeMap<RegionId, Published> {
        let name = |copy: &ActiveCopy| {
            let region = copy.claimed.region.clone();
            let store = self.stores.get(&region)?;
            let name = store.name_of(&self.image);
            Some(RegionName { region, location: location(&**store, &name), name })
        };
        let names: Vec<RegionName> = copies.iter().filter_map(name).collect();
        self.worker.state.published(&names).await.unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), image = %self.image.id, "failed to find out what was published; looking for every part");
            BTreeMap::new()
        })
    }

    async fn destination(&self, active: &ActiveCopy, store: Arc<dyn Store>, published: Published) -> Destination {
        let ClaimedRegion { region, fence, suspect, overwrite, .. } = &active.claimed;
        let (state, name) = (self.worker.state.clone(), store.name_of(&self.image));
        let location = location(&*store, &name);
        let journal = ReplicaJournal::new(state, self.image.id.clone(), region.clone(), *fence, location);
        let stage = Stage {
            suspect: *suspect,
            lenders: self.mount_sources(region, &*store).await,
            published,
            overwrite: *overwrite,
            ..Stage::new(name, *fence, Arc::new(journal))
        };
        Destination {
            region: region.clone(),
            store,
            stage,
            meter: Arc::clone(&active.meter),
            paces: self.worker.limits.paces(region),
            stall: self.worker.settings.stall,
            resumed: 0,
        }
    }

    /// Where blobs of the image may be taken from without sending them.
    async fn mount_sources(&self, region: &RegionId, store: &dyn Store) -> Arc<[Place]> {
        let Some(own) = store.place(&store.name_of(&self.image)) else { return Arc::default() };
        let home = self.stores.get(&self.image.home).and_then(|home| home.place(&self.image.source));
        let others = self.worker.state.images_in(region, &self.image.id, MOUNT_SOURCES).await;
        let others = others.unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), "failed to look for mount sources; copying every blob");
            Vec::new()
        });
        let others = others.iter().filter_map(|other| store.place(&store.name_of(other)));
        let mut places: Vec<Place> = Vec::new();
        for place in home.into_iter().chain(others) {
            if place.service == own.service && place != own && !places.contains(&place) {
                places.push(place);
            }
        }
        places.into()
    }

    /// Starts to feed those that wait from the regions that can feed them.
    async fn feed(&mut self) {
        let waiting = self.copies.iter().filter(|(_, copy)| copy.fed.is_none());
        let waiting: Vec<RegionId> = waiting.map(|(region, _)| region.clone()).collect();
        if waiting.is_empty() {
            return;
        }
        if self.sources.is_empty() {
            for region in waiting {
                let error = self.no_source();
                self.end(region, Err(error)).await;
            }
            return;
        }
        for (from, fed) in self.worker.limits.assign(&self.sources, &waiting) {
            let fed = self.granted(&from, fed).await;
            let Some(transfer) = self.transfer(&from) else { continue };
            // All of them board before the first of them starts, so that it waits for the others a little.
            let boarding: Vec<_> = fed.into_iter().map(|(region, slot)| (region, slot, transfer.board())).collect();
            for (region, slot, boarding) in boarding {
                let Some(copy) = self.copies.get_mut(&region) else { continue };
                copy.active.span.record("appferry.source_region_id", from.as_str());
                let (transfer, destination, lost) =
                    (Arc::clone(&transfer), copy.destination.clone(), copy.lost.clone());
                let copying = async move {
                    let copied = lost.run_until_cancelled(transfer.copy_to(destination, boarding)).await;
                    copied.unwrap_or_else(|| Err(Error::Overtaken.into()))
                };
                let task = self.tasks.spawn(copying.instrument(copy.active.span.clone())).id();
                copy.fed = Some((slot.in_use(), task));
            }
        }
    }

    /// Why a region can't be fed by any other.
    fn no_source(&self) -> CopyError {
        let gone = || CopyError::Source {
            region: self.image.home.clone(),
            error: Arc::new(Error::ImageMissing(
                format!("{} (the region is not configured, and no other has it)", self.image.id).into(),
            )),
            is_remote: false,
        };
        self.source_failed.clone().unwrap_or_else(gone)
    }

    /// What reads the image from a region.
    fn transfer(&mut self, from: &RegionId) -> Option<Arc<Transfer>> {
        self.transfers.retain(|_, transfer| !transfer.is_closed());
        if let Some(transfer) = self.transfers.get(from) {
            return Some(Arc::clone(transfer));
        }
        let store = self.stores.get(from)?.clone();
        let name = if *from == self.image.home { self.image.source.clone() } else { store.name_of(&self.image) };
        let paces = self.worker.limits.paces(from);
        let absent = self.image.absent.as_slice().into();
        let source = ImageSource { region: from.clone(), store, name, root: self.root.clone(), absent, paces };
        let settings = &self.worker.settings;
        let waits = Waits { patience: settings.patience, stall: settings.stall };
        let transfer = Arc::new(Transfer::start(source, waits));
        self.transfers.insert(from.clone(), Arc::clone(&transfer));
        Some(transfer)
    }

    /// Those that may be fed from a region, as far as other processes leave room. The others try again with the next heartbeat.
    async fn granted(&self, from: &RegionId, fed: Vec<(RegionId, Slot)>) -> Vec<(RegionId, Slot)> {
        let limits = self.worker.limits.copies_out_of();
        if !limits.contains_key(from) {
            return fed;
        }
        let feed = |region: &RegionId| {
            self.copies.get(region).map(|copy| (region.clone(), copy.active.claimed.fence, from.clone()))
        };
        let feeds: Vec<_> = fed.iter().filter_map(|(region, _)| feed(region)).collect();
        let granted = self.worker.state.reserve_egress(&self.image.id, &feeds, limits).await.unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), image = %self.image.id, "failed to reserve egress; will retry");
            Vec::new()
        });
        fed.into_iter().filter(|(region, _)| granted.contains(region)).collect()
    }

    /// The task of a copy has ended.
    async fn ended(&mut self, ended: Ended) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => {
                tracing::error!(%error, image = %self.image.id, "copy task panicked; will retry");
                (error.id(), Err(Error::Interrupted.into()))
            }
        };
        let of_task = |copy: &Copy| copy.fed.as_ref().is_some_and(|(_, task)| *task == id);
        // One that was lost meanwhile is no longer here.
        let region = self.copies.iter().find(|(_, copy)| of_task(copy)).map(|(region, _)| region.clone());
        if let Some(region) = region {
            self.end(region, result).await;
        }
    }

    /// A copy has ended, or its source has failed: then another one feeds it.
    async fn end(&mut self, region: RegionId, result: Result<Copied, CopyError>) {
        if let Err(failed @ CopyError::Source { region: source, error, .. }) = &result
            && self.sources.contains(source)
        {
            tracing::warn!(image = %self.image.id, %source, %region, error = with_causes(&**error), "source failed; trying another region");
            if *source == self.image.home || self.source_failed.is_none() {
                self.source_failed = Some(failed.clone());
            }
            self.sources.retain(|known| known != source);
            self.transfers.remove(source);
        }
        if let Err(CopyError::Source { .. }) = &result
            && !self.sources.is_empty()
        {
            if let Some(copy) = self.copies.get_mut(&region) {
                copy.fed = None;
            }
            return;
        }
        let Some(copy) = self.copies.remove(&region) else { return };
        let result = match result {
            Err(CopyError::Source { .. }) => Err(self.no_source()),
            result => result,
        };
        if result.is_ok() {
            self.sources.push(region.clone());
        }
        let Copy { active, destination, .. } = copy;
        // A copy that failed may have become visible all the same, and been canceled before it could note that.
        if !self.worker.conclude(&self.image.id, active, result).await {
            self.retract(region, destination);
        }
    }

    /// Takes back what a canceled copy has made visible, beside everything else: a store that hangs must not delay other regions.
    fn retract(&mut self, region: RegionId, destination: Destination) {
        let Destination { store, stage, .. } = destination;
        self.retractions.spawn(retract_canceled(
            self.worker.state.clone(),
            self.image.id.clone(),
            region,
            store,
            stage,
        ));
    }

    fn lose(&mut self, lost: Vec<RegionId>) {
        for region in lost {
            if let Some(copy) = self.copies.remove(&region) {
                copy.lost.cancel();
                copy.active.span.record("appferry.state", "LOST");
                metrics::lost(&region);
                tracing::info!(parent: &copy.active.span, image = %self.image.id, %region, "claim lost: the copy was canceled or taken over");
                // It may just have ended, and not been reported yet.
                self.retract(region, copy.destination);
            }
        }
    }
}

/// Where a store has an image, if it says so.
fn location(store: &dyn Store, name: &ImageName) -> Option<String> {
    store.place(name).map(|Place { service, path }| format!("{service} {path}"))
}
