//! One pass: an image on its way to the regions that were claimed together. Its source is read once; whoever fails or lags
//! leaves, and costs the others nothing.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::{Instrument as _, Span};

use super::{
    destination::{Delivery, Destination, WRITES_AT_ONCE},
    limits::Paces,
    pump::{self, From, Sink, Waits, pump},
    wanting::{Lacking, Wanting},
};
use crate::{
    domain::{Descriptor, ImageName, RegionId, Verification},
    region::{Error, Source, Tree, Verdict},
};

/// Blobs above this size, in bytes, are large: a few of them at a time fill any link.
const LARGE: u64 = 4 << 20;
/// What may be read at the same time: a large blob weighs five, another one.
const WEIGHT_AT_ONCE: usize = 16;
const LARGE_WEIGHT: usize = 5;
/// How often a destination goes on within one attempt after its connection broke, and the wait before the first time.
const RESUMPTIONS: u32 = 3;
const RESUMPTION_WAIT: Duration = Duration::from_millis(200);
/// The longest wait that a store may ask for within one attempt.
const LONGEST_RESUMPTION_WAIT: Duration = Duration::from_secs(5);

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

impl Trouble {
    /// What was wrong.
    #[must_use]
    pub fn error(&self) -> &Error {
        match self {
            Self::Source { error, .. } | Self::Destination(error) => error,
        }
    }
}

/// An image on its way.
#[derive(Debug)]
pub struct Pass {
    /// The region that it is read from.
    pub from: RegionId,
    /// That region's store.
    pub source: Arc<dyn Source>,
    /// The store's name for it.
    pub name: ImageName,
    /// Its root.
    pub root: Descriptor,
    /// How long destinations are waited for.
    pub waits: Waits,
    /// How fast it may be read.
    pub paces: Arc<Paces>,
}

/// A destination and the span of its copy.
pub type Tracked = (Destination, Span);

/// A destination that has come to its end.
pub type Ended = (RegionId, Result<Verification, Trouble>);

/// A destination that knows what it lacks.
type Planned = (Tracked, Lacking);

impl Pass {
    /// Carries the image to every destination, and tells of each as soon as it has ended.
    pub async fn run(self: Arc<Self>, destinations: Vec<Tracked>, ended: mpsc::Sender<Ended>) {
        let tree = match self.tree().await {
            Ok(tree) => Arc::new(tree),
            Err(error) => {
                let error = Arc::new(error);
                for (destination, _) in destinations {
                    let trouble = Trouble::Source { region: self.from.clone(), error: Arc::clone(&error) };
                    tell(&ended, destination.region, Err(trouble)).await;
                }
                return;
            }
        };
        // With room for every destination: none waits here.
        let (lagging, mut laggards) = mpsc::channel(destinations.len().max(1));
        let group =
            |members: Vec<Planned>| Arc::clone(&self).group(Arc::clone(&tree), members, ended.clone(), lagging.clone());
        let mut planning = JoinSet::new();
        for tracked in destinations {
            planning.spawn(plan(tracked, Arc::clone(&tree)));
        }
        // Those that know what they lack go together; whoever takes longer to find out goes with the next group.
        let mut ready: Vec<Planned> = Vec::new();
        let mut departure = None;
        let mut groups = JoinSet::new();
        loop {
            if !ready.is_empty() && (planning.is_empty() || departure.is_some_and(|at| at <= Instant::now())) {
                groups.spawn(group(mem::take(&mut ready)));
                departure = None;
            }
            if planning.is_empty() && groups.is_empty() && laggards.is_empty() {
                return;
            }
            let boarding = departure.unwrap_or_else(Instant::now);
            tokio::select! {
                Some(planned) = planning.join_next() => match planned {
                    Ok((tracked, Ok(lacking))) => {
                        ready.push((tracked, lacking));
                        departure.get_or_insert_with(|| Instant::now() + self.waits.patience);
                    }
                    Ok((tracked, Err(error))) => {
                        tell(&ended, tracked.0.region, Err(Trouble::Destination(Arc::new(error)))).await;
                    }
                    Err(error) => tracing::error!(%error, "the planning of a copy ended badly"),
                },
                () = sleep_until(boarding), if departure.is_some() => {}
                Some(tracked) = laggards.recv() => {
                    planning.spawn(plan(tracked, Arc::clone(&tree)));
                }
                Some(carried) = groups.join_next() => if let Err(error) = carried {
                    tracing::error!(%error, "a group of copies ended badly");
                },
            }
        }
    }

    async fn tree(&self) -> Result<Tree, Error> {
        // What was registered is what is carried: the root is read by its digest, whatever the source shows by now.
        let Some(shown) = self.source.root(&self.name).await? else {
            return Err(Error::ImageMissing(self.name.to_string()));
        };
        if shown.digest != self.root.digest {
            let (region, name, registered) = (&self.from, &self.name, &self.root.digest);
            tracing::warn!(%region, %name, %registered, shown = %shown.digest, "the name shows another digest than was registered; copying by digest");
        }
        Tree::read_with_referrers(&*self.source, &self.name, &self.root).await
    }

    /// Carries what some destinations lack, each blob read once. Those that lag are passed on at once: they have to go on alone.
    async fn group(
        self: Arc<Self>,
        tree: Arc<Tree>,
        members: Vec<Planned>,
        ended: mpsc::Sender<Ended>,
        lagging: mpsc::Sender<Tracked>,
    ) {
        let alone = members.len() == 1;
        let mut receiving = JoinSet::new();
        let mut wanting = Vec::new();
        for ((destination, span), lacking) in members {
            let (deliveries, receiver) = mpsc::channel(WRITES_AT_ONCE);
            let member = Wanting::new(destination.region.clone(), lacking.clone(), deliveries);
            let left = member.left();
            wanting.push(member);
            let (tree, from) = (Arc::clone(&tree), self.from.clone());
            receiving.spawn(async move {
                let received = tokio::select! {
                    received = destination.receive(&tree, &from, lacking, receiver).instrument(span.clone()) => received,
                    // What its store is still doing, if it hangs in it, is not waited for.
                    () = left.cancelled() => Err(Error::Interrupted),
                };
                (destination, span, left, received)
            });
        }
        let failures = Failures::default();
        let carry = self.carry(&tree, wanting, &failures);
        let collect = async {
            while let Some(received) = receiving.join_next().await {
                let (mut destination, span, left, received) = match received {
                    Ok(received) => received,
                    Err(error) => {
                        tracing::error!(%error, "a copy ended badly");
                        continue;
                    }
                };
                let region = destination.region.clone();
                let trouble = match received {
                    Ok(verification) => {
                        tell(&ended, region, Ok(verification)).await;
                        continue;
                    }
                    Err(Error::Interrupted) => match failures.of(&region) {
                        Some(error) => Trouble::Source { region: self.from.clone(), error },
                        None if left.is_cancelled() && !alone => {
                            tracing::info!(parent: &span, %region, "the region is too slow for the others and goes on alone");
                            // There is room for every destination.
                            let _ = lagging.send((destination, span)).await;
                            continue;
                        }
                        None if left.is_cancelled() => Trouble::Destination(Arc::new(Error::Stalled("writing a blob"))),
                        None => Trouble::Destination(Arc::new(Error::Interrupted)),
                    },
                    Err(error) => match resumption(&error, destination.resumed) {
                        Some(wait) => {
                            tracing::info!(parent: &span, %region, %error, "the copy broke off and is gone on with");
                            destination.resumed += 1;
                            destination.rest = wait;
                            let _ = lagging.send((destination, span)).await;
                            continue;
                        }
                        None => Trouble::Destination(Arc::new(error)),
                    },
                };
                tell(&ended, region, Err(trouble)).await;
            }
        };
        tokio::join!(carry, collect);
    }

    /// Reads each blob that somebody lacks, once, for all who lack it. Ends when everything has been read, when nobody listens
    /// any more, or when the source fails.
    async fn carry(&self, tree: &Tree, wanting: Vec<Wanting>, failures: &Failures) {
        let mut reading = FuturesUnordered::new();
        let mut weight = 0;
        for blob in &tree.blobs {
            let own = if blob.size > LARGE { LARGE_WEIGHT } else { 1 };
            while weight + own > WEIGHT_AT_ONCE {
                weight -= reading.next().await.unwrap_or(weight);
            }
            weight += own;
            reading.push(self.carry_blob(blob, &wanting, failures).map(move |()| own));
        }
        while reading.next().await.is_some() {}
    }

    async fn carry_blob(&self, blob: &Descriptor, wanting: &[Wanting], failures: &Failures) {
        // Whether there is nobody whom waiting could delay is a matter of the whole group: others may lack other blobs.
        let alone = || wanting.iter().filter(|member| member.takes_part()).count() <= 1;
        let mut sinks = Vec::new();
        for member in wanting {
            let Some(from) = member.lacks(blob) else { continue };
            let (sink, chunks) = mpsc::channel(pump::QUEUE);
            let patience = if alone() { self.waits.stall } else { self.waits.patience };
            if member.deliver(Delivery { blob: blob.clone(), from, chunks }, patience).await {
                sinks.push(Sink { member, chunks: Some(sink), from });
            }
        }
        if sinks.is_empty() {
            return;
        }
        let from = From { source: &self.source, name: &self.name, pace: &self.paces.egress };
        let result = pump(from, blob, &mut sinks, self.waits, alone).await;
        // Before the sinks are dropped: a destination whose stream breaks off asks why at once.
        if let Err(error) = result {
            failures.put(sinks.iter().map(|sink| &sink.member.region), error);
        }
    }
}

/// How long to wait before a destination goes on within the same attempt; nothing if it should not.
fn resumption(error: &Error, resumed: u32) -> Option<Duration> {
    let broken = matches!(error, Error::Transport { .. } | Error::Status { .. } | Error::UploadGone(_));
    let wait = error.retry_after().unwrap_or(RESUMPTION_WAIT * 4_u32.pow(resumed.min(RESUMPTIONS)));
    let goes_on = broken && error.verdict() == Verdict::Retry && resumed < RESUMPTIONS;
    (goes_on && wait <= LONGEST_RESUMPTION_WAIT).then_some(wait)
}

/// Makes a destination find out what it lacks.
async fn plan(mut tracked: Tracked, tree: Arc<Tree>) -> (Tracked, Result<Lacking, Error>) {
    sleep(mem::take(&mut tracked.0.rest)).await;
    let lacking = tracked.0.plan(&tree).instrument(tracked.1.clone()).await;
    (tracked, lacking)
}

/// Which destinations lost their stream because the source failed, and how.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<RegionId, Arc<Error>>>);

impl Failures {
    /// The failures hold nothing that a panic could leave half-done.
    fn map(&self) -> MutexGuard<'_, HashMap<RegionId, Arc<Error>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put<'a>(&self, regions: impl Iterator<Item = &'a RegionId>, error: Error) {
        let error = Arc::new(error);
        let mut map = self.map();
        for region in regions {
            map.entry(region.clone()).or_insert_with(|| Arc::clone(&error));
        }
    }

    fn of(&self, region: &RegionId) -> Option<Arc<Error>> {
        self.map().get(region).cloned()
    }
}

async fn tell(ended: &mpsc::Sender<Ended>, region: RegionId, result: Result<Verification, Trouble>) {
    // Whoever no longer listens has given the whole pass up.
    let _ = ended.send((region, result)).await;
}
