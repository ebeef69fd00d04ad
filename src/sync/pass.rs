//! One pass: an image on its way to the regions that were claimed together. Its source is read once; whoever fails or lags
//! leaves, and costs the others nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    task::JoinSet,
};
use tracing::{Instrument as _, Span};

use super::{
    destination::{Delivery, Destination},
    pump::{self, Waits, pump},
};
use crate::{
    domain::{Descriptor, Digest, ImageName, RegionId},
    region::{Error, Source, Tree},
};

/// Blobs that are read at the same time: while one is verified at its destinations, the next is on its way.
const BLOBS_AT_ONCE: usize = 2;

/// Why a destination has not got the image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Trouble {
    /// The source failed.
    #[error("the source, {region}: {error}")]
    Source {
        /// The source's region.
        region: RegionId,
        /// What was wrong.
        error: Arc<Error>,
    },
    /// The destination failed.
    #[error("{0}")]
    Destination(Arc<Error>),
}

/// An image on its way.
#[derive(Debug)]
pub struct Pass {
    /// The region that it is read from.
    pub home: RegionId,
    /// That region's store.
    pub source: Arc<dyn Source>,
    /// The store's name for it.
    pub name: ImageName,
    /// Its root.
    pub root: Descriptor,
    /// How long destinations are waited for.
    pub waits: Waits,
}

/// A destination and the span of its copy.
pub type Tracked = (Destination, Span);

/// A destination that has come to its end.
pub type Ended = (RegionId, Result<(), Trouble>);

impl Pass {
    /// Carries the image to every destination, and tells of each as soon as it has ended.
    pub async fn run(self: Arc<Self>, destinations: Vec<Tracked>, ended: mpsc::Sender<Ended>) {
        let tree = match self.tree().await {
            Ok(tree) => Arc::new(tree),
            Err(error) => {
                let error = Arc::new(error);
                for (destination, _) in destinations {
                    let trouble = Trouble::Source { region: self.home.clone(), error: Arc::clone(&error) };
                    tell(&ended, destination.region, Err(trouble)).await;
                }
                return;
            }
        };
        let mut planning = JoinSet::new();
        for tracked in destinations {
            let tree = Arc::clone(&tree);
            planning.spawn(async move {
                let span = tracked.1.clone();
                let lacking = tracked.0.plan(&tree).instrument(span).await;
                (tracked, lacking)
            });
        }
        // Those that know what they lack go together; whoever takes longer to find out goes with the next group.
        let mut groups = JoinSet::new();
        while let Some(first) = planning.join_next().await {
            let mut group = Vec::new();
            let deadline = tokio::time::Instant::now() + self.waits.patience;
            let mut next = Some(first);
            while let Some(planned) = next {
                match planned {
                    Ok((tracked, Ok(lacking))) => group.push((tracked, lacking)),
                    Ok((tracked, Err(error))) => {
                        tell(&ended, tracked.0.region, Err(Trouble::Destination(Arc::new(error)))).await;
                    }
                    Err(error) => tracing::error!(%error, "the planning of a copy ended badly"),
                }
                next = tokio::time::timeout_at(deadline, planning.join_next()).await.ok().flatten();
            }
            groups.spawn(Arc::clone(&self).group(Arc::clone(&tree), group, ended.clone()));
        }
        while let Some(lagging) = groups.join_next().await {
            match lagging {
                Ok(lagging) => {
                    for alone in lagging {
                        groups.spawn(Arc::clone(&self).group(Arc::clone(&tree), vec![alone], ended.clone()));
                    }
                }
                Err(error) => tracing::error!(%error, "a group of copies ended badly"),
            }
        }
    }

    async fn tree(&self) -> Result<Tree, Error> {
        // What was registered is what is carried: the root is read by its digest, whatever the source shows by now.
        if self.source.root(&self.name).await?.is_none() {
            return Err(Error::ImageMissing(self.name.to_string()));
        }
        Tree::read(&*self.source, &self.name, &self.root).await
    }

    /// Carries what some destinations lack, each blob read once. Returns those that lagged and have to go on alone.
    async fn group(
        self: Arc<Self>,
        tree: Arc<Tree>,
        members: Vec<(Tracked, HashSet<Digest>)>,
        ended: mpsc::Sender<Ended>,
    ) -> Vec<(Tracked, HashSet<Digest>)> {
        let mut receiving = JoinSet::new();
        let mut wanting = Vec::new();
        for ((destination, span), lacking) in members {
            let (deliveries, receiver) = mpsc::channel(BLOBS_AT_ONCE);
            wanting.push(Wanting {
                region: destination.region.clone(),
                lacking: lacking.clone(),
                deliveries: Mutex::new(Some(deliveries)),
            });
            let tree = Arc::clone(&tree);
            receiving.spawn(async move {
                let received = destination.receive(&tree, lacking, receiver).instrument(span.clone()).await;
                (destination, span, received)
            });
        }
        let verdicts = Verdicts::default();
        let carry = self.carry(&tree, wanting, &verdicts);
        let collect = async {
            let mut lagging = Vec::new();
            while let Some(received) = receiving.join_next().await {
                match received {
                    Ok((destination, _, Ok(()))) => tell(&ended, destination.region, Ok(())).await,
                    Ok((destination, span, Err(error))) => {
                        match verdicts.explain(&destination.region, error, &self.home) {
                            Some(trouble) => tell(&ended, destination.region, Err(trouble)).await,
                            None => lagging.push((destination, span)),
                        }
                    }
                    Err(error) => tracing::error!(%error, "a copy ended badly"),
                }
            }
            lagging
        };
        let ((), lagging) = tokio::join!(carry, collect);
        let mut again = Vec::new();
        for (destination, span) in lagging {
            tracing::info!(parent: &span, region = %destination.region, "the region is too slow for the others and goes on alone");
            match destination.plan(&tree).instrument(span.clone()).await {
                Ok(lacking) => again.push(((destination, span), lacking)),
                Err(error) => {
                    tell(&ended, destination.region, Err(Trouble::Destination(Arc::new(error)))).await;
                }
            }
        }
        again
    }

    /// Reads each blob that somebody lacks, once, for all who lack it. Ends when everything has been read, when nobody listens
    /// any more, or when the source fails.
    async fn carry(&self, tree: &Tree, wanting: Vec<Wanting>, verdicts: &Verdicts) {
        let mut reading = FuturesUnordered::new();
        for blob in &tree.blobs {
            if reading.len() >= BLOBS_AT_ONCE {
                reading.next().await;
            }
            reading.push(self.carry_blob(blob, &wanting, verdicts));
        }
        while reading.next().await.is_some() {}
    }

    async fn carry_blob(&self, blob: &Descriptor, wanting: &[Wanting], verdicts: &Verdicts) {
        let mut regions = Vec::new();
        let mut sinks = Vec::new();
        for member in wanting.iter().filter(|w| w.lacking.contains(&blob.digest)) {
            let (sink, chunks) = mpsc::channel(pump::QUEUE);
            let delivery = Delivery { blob: blob.clone(), chunks };
            let patience = if wanting.len() == 1 { self.waits.stall } else { self.waits.patience };
            match member.deliver(delivery, patience).await {
                Delivered::Taken => {
                    regions.push(&member.region);
                    sinks.push(Some(sink));
                }
                Delivered::Lagging => verdicts.lagged(&member.region),
                Delivered::Gone => {}
            }
        }
        if sinks.is_empty() {
            return;
        }
        let lagging = |place: usize| verdicts.lagged(regions[place]);
        let result = pump(&*self.source, &self.name, blob, &mut sinks, self.waits, lagging).await;
        // Before the sinks are dropped: a destination whose stream breaks off asks why at once.
        if let Err(error) = result {
            verdicts.source_failed(&regions, error);
        }
    }
}

/// A destination as its group's source sees it.
struct Wanting {
    region: RegionId,
    lacking: HashSet<Digest>,
    /// Nothing once it has been left behind.
    deliveries: Mutex<Option<mpsc::Sender<Delivery>>>,
}

/// What became of a delivery.
enum Delivered {
    /// It was taken.
    Taken,
    /// The destination is still busy with those before. It gets no more.
    Lagging,
    /// The destination has left.
    Gone,
}

impl Wanting {
    /// The place holds nothing that a panic could leave half-done.
    fn place(&self) -> MutexGuard<'_, Option<mpsc::Sender<Delivery>>> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn deliver(&self, delivery: Delivery, patience: Duration) -> Delivered {
        let Some(sender) = self.place().clone() else { return Delivered::Gone };
        match sender.send_timeout(delivery, patience).await {
            Ok(()) => Delivered::Taken,
            Err(SendTimeoutError::Closed(_)) => Delivered::Gone,
            Err(SendTimeoutError::Timeout(_)) => {
                self.place().take();
                Delivered::Lagging
            }
        }
    }
}

/// Why streams broke off.
#[derive(Debug, Default)]
struct Verdicts(Mutex<Reasons>);

#[derive(Debug, Default)]
struct Reasons {
    lagging: HashSet<RegionId>,
    source: HashMap<RegionId, Arc<Error>>,
}

impl Verdicts {
    /// The reasons hold nothing that a panic could leave half-done.
    fn reasons(&self) -> MutexGuard<'_, Reasons> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lagged(&self, region: &RegionId) {
        self.reasons().lagging.insert(region.clone());
    }

    fn source_failed(&self, regions: &[&RegionId], error: Error) {
        let error = Arc::new(error);
        let mut reasons = self.reasons();
        for region in regions {
            reasons.source.entry((*region).clone()).or_insert_with(|| Arc::clone(&error));
        }
    }

    /// What a destination's error means; nothing if it was only too slow for the others.
    fn explain(&self, region: &RegionId, error: Error, home: &RegionId) -> Option<Trouble> {
        if !matches!(error, Error::Interrupted) {
            return Some(Trouble::Destination(Arc::new(error)));
        }
        let reasons = self.reasons();
        if let Some(error) = reasons.source.get(region) {
            return Some(Trouble::Source { region: home.clone(), error: Arc::clone(error) });
        }
        if reasons.lagging.contains(region) { None } else { Some(Trouble::Destination(Arc::new(error))) }
    }
}

async fn tell(ended: &mpsc::Sender<Ended>, region: RegionId, result: Result<(), Trouble>) {
    // Whoever no longer listens has given the whole pass up.
    let _ = ended.send((region, result)).await;
}
