//! An image on its way to the regions that were claimed together: who feeds whom, the claims kept alive meanwhile, and what
//! becomes of each.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Worker,
    destination::Destination,
    heartbeat::{Heartbeat, Held},
    limits::Slot,
    pass::{Ended, Pass, Tracked, Trouble},
    pump::Waits,
    underway::Underway,
};
use crate::{
    domain::{Descriptor, Event, Image, RegionId, Verification, with_causes},
    metrics,
    region::{Error, Stores},
    state::Report,
};

/// One region of a claim.
#[derive(Debug)]
pub struct Copy {
    /// What was claimed, and how far it has come.
    pub underway: Underway,
    /// What carries it out.
    pub destination: Destination,
    /// Canceled when the claim is lost.
    pub lost: CancellationToken,
    /// Its slot, while it is fed.
    pub fed: Option<Slot>,
}

/// An image on its way to the regions of a claim.
#[derive(Debug)]
pub struct Carriage<'a> {
    /// Who carries it.
    worker: &'a Worker,
    stores: Stores,
    image: Image,
    root: Descriptor,
    /// The regions that have it, its home first.
    sources: Vec<RegionId>,
    /// The regions that have not got it yet.
    copies: BTreeMap<RegionId, Copy>,
    passes: JoinSet<()>,
}

impl<'a> Carriage<'a> {
    /// A carriage of an image that some regions have already.
    pub fn new(
        worker: &'a Worker,
        stores: Stores,
        image: Image,
        root: Descriptor,
        available: Vec<RegionId>,
        copies: BTreeMap<RegionId, Copy>,
    ) -> Self {
        // The home region first: who can be fed from there is, unless limits or costs say otherwise.
        let sources = std::iter::once(image.home.clone()).chain(available).collect();
        Self { worker, stores, image, root, sources, copies, passes: JoinSet::new() }
    }

    /// Carries the image to each of the regions, and reports on each as soon as it has ended.
    pub async fn run(mut self, stop: CancellationToken) {
        let settings = &self.worker.settings;
        let (ended, mut ends) = mpsc::channel(self.copies.len().max(1));
        let mut heartbeat = Heartbeat::new(self.image.id.clone(), settings.lease, settings.heartbeat);
        loop {
            self.feed(&ended).await;
            if self.copies.is_empty() {
                break;
            }
            let held: Vec<Held> = self.copies.values().map(|copy| copy.underway.held()).collect();
            tokio::select! {
                Some((region, result)) = ends.recv() => self.end(region, result).await,
                Some(passed) = self.passes.join_next() => if let Err(error) = passed {
                    tracing::error!(%error, "a pass ended badly");
                    self.forsaken(&mut ends).await;
                },
                lost = heartbeat.beat(&self.worker.state, &held) => self.lose(lost),
                () = self.worker.limits.freed() => {}
                () = stop.cancelled() => break,
            }
        }
        // Whatever is still being copied has no claim any more, or is handed back: it must not write on.
        self.passes.shutdown().await;
        self.worker.tidy().await;
        for copy in std::mem::take(&mut self.copies).into_values() {
            if let Err(error) = copy.destination.stage.journal.save().await {
                tracing::debug!(%error, region = %copy.destination.region, "written blobs could not be saved");
            }
            let Underway { claimed, span, .. } = copy.underway;
            span.record("appferry.state", "RELEASED");
            let event = Event::Release { fence: claimed.fence };
            self.worker.report(&self.image.id, Report { region: claimed.region, event }).await;
        }
    }

    /// Starts a pass from each region that can feed some of those that wait.
    async fn feed(&mut self, ended: &mpsc::Sender<Ended>) {
        let waiting: Vec<RegionId> =
            self.copies.iter().filter(|(_, copy)| copy.fed.is_none()).map(|(region, _)| region.clone()).collect();
        if waiting.is_empty() {
            return;
        }
        for (from, fed) in self.worker.limits.assign(&self.sources, &waiting) {
            let fed = self.granted(&from, fed).await;
            let Some(source) = self.stores.get(&from).cloned() else { continue };
            let mut destinations: Vec<Tracked> = Vec::new();
            for (region, slot) in fed {
                let Some(copy) = self.copies.get_mut(&region) else { continue };
                copy.fed = Some(slot);
                copy.underway.span.record("appferry.source_region_id", from.as_str());
                destinations.push((copy.destination.clone(), copy.underway.span.clone()));
            }
            let name = if from == self.image.home { self.image.source.clone() } else { source.name_of(&self.image) };
            let settings = &self.worker.settings;
            let pass = Arc::new(Pass {
                paces: self.worker.limits.paces(&from),
                from,
                source,
                name,
                root: self.root.clone(),
                waits: Waits { patience: settings.patience, stall: settings.stall },
            });
            self.passes.spawn(pass.run(destinations, ended.clone()));
        }
    }

    /// Those that may be fed from a region, as far as other processes leave room. The others try again with the next heartbeat.
    async fn granted(&self, from: &RegionId, fed: Vec<(RegionId, Slot)>) -> Vec<(RegionId, Slot)> {
        let limits = self.worker.limits.copies_out_of();
        if !limits.contains_key(from) {
            return fed;
        }
        let feed = |region: &RegionId| {
            self.copies.get(region).map(|c| (region.clone(), c.underway.claimed.fence, from.clone()))
        };
        let feeds: Vec<_> = fed.iter().filter_map(|(region, _)| feed(region)).collect();
        let granted = self.worker.state.replica_feed(&self.image.id, &feeds, limits).await.unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), image = %self.image.id, "who may be fed is not known for now");
            Vec::new()
        });
        let (granted, refused): (Vec<_>, Vec<_>) = fed.into_iter().partition(|(region, _)| granted.contains(region));
        for (_, slot) in refused {
            slot.forgo();
        }
        granted
    }

    /// A region has come to its end, or to that of whoever fed it: then somebody else does.
    async fn end(&mut self, region: RegionId, result: Result<Verification, Trouble>) {
        if let Err(Trouble::Source { region: source, error }) = &result
            && *source != self.image.home
        {
            tracing::warn!(%error, %source, %region, "a region that has the image could not feed another one");
            self.sources.retain(|known| known != source);
            if let Some(copy) = self.copies.get_mut(&region) {
                copy.fed = None;
            }
            return;
        }
        let Some(copy) = self.copies.remove(&region) else { return };
        if result.is_ok() {
            self.sources.push(region);
        }
        self.worker.conclude(&self.image.id, copy.underway, result).await;
    }

    /// A pass has ended badly: those that it fed and did not tell of are retried later.
    async fn forsaken(&mut self, ends: &mut mpsc::Receiver<Ended>) {
        self.passes.shutdown().await;
        while let Ok((region, result)) = ends.try_recv() {
            self.end(region, result).await;
        }
        let fed: Vec<RegionId> =
            self.copies.iter().filter(|(_, copy)| copy.fed.is_some()).map(|(region, _)| region.clone()).collect();
        for region in fed {
            self.end(region, Err(Trouble::Destination(Arc::new(Error::Interrupted)))).await;
        }
    }

    fn lose(&mut self, lost: Vec<RegionId>) {
        for region in lost {
            if let Some(copy) = self.copies.remove(&region) {
                copy.lost.cancel();
                copy.underway.span.record("appferry.state", "LOST");
                metrics::lost(&region);
                tracing::info!(parent: &copy.underway.span, image = %self.image.id, %region, "the copy was canceled or taken over");
            }
        }
    }
}
