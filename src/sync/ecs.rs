//! Copies that ECS makes: asked for, watched to their end, and given up when nobody wants them any more. Whatever is known of one is
//! in the database before anything is done about it, so that whoever claims the replica next goes on with the same copy.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Worker, destination::Meter, heartbeat::Heartbeat, pass::Trouble, underway::Underway};
use crate::{
    domain::{
        EcsCopy, EcsImageId, EcsStatus, EcsStep, Event, Image, ImageId, Progress, RegionId, Stale, Timestamp,
        with_causes,
    },
    metrics,
    region::{
        Ecs, Error, Result, Verdict,
        ecs::{self, Order},
    },
    state::{self, Report, State},
};

/// After how many troubles in a row that may pass an attempt is given up.
const TROUBLES: u32 = 8;
/// The longest wait after one of them, unless the provider asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long it is waited at a shutdown for what is being asked of ECS.
const LAST_STEP: Duration = Duration::from_secs(3);
/// How long it is waited for the provider to take back a copy that was canceled.
const GIVE_UP: Duration = Duration::from_secs(30);

/// An image on its way to the regions of a claim.
#[derive(Debug)]
pub struct EcsCarriage<'a> {
    worker: &'a Worker,
    ecs: Ecs,
    image: Arc<Image>,
    source: EcsImageId,
    copies: BTreeMap<RegionId, Watched>,
    watches: JoinSet<(RegionId, Result<()>)>,
}

/// A copy that is being watched.
#[derive(Debug)]
struct Watched {
    underway: Underway,
    /// Canceled when the claim is lost.
    lost: CancellationToken,
    watch: task::Id,
}

impl<'a> EcsCarriage<'a> {
    /// A carriage of the image that the home region knows as `source`.
    pub fn new(worker: &'a Worker, ecs: Ecs, image: Image, source: EcsImageId) -> Self {
        let image = Arc::new(image);
        Self { worker, ecs, image, source, copies: BTreeMap::new(), watches: JoinSet::new() }
    }

    /// Has ECS carry the image to each of the regions, and reports on each as soon as it has ended.
    pub async fn run(mut self, regions: Vec<Underway>, stop: CancellationToken) {
        for underway in regions {
            self.watch(underway, &stop);
        }
        let settings = &self.worker.settings;
        let mut heartbeat = Heartbeat::new(self.image.id.clone(), settings.lease, settings.heartbeat);
        while !self.watches.is_empty() {
            let held: Vec<_> = self.copies.values().map(|copy| copy.underway.held()).collect();
            tokio::select! {
                Some(ended) = self.watches.join_next() => match ended {
                    Ok((region, result)) => self.end(&region, result).await,
                    Err(error) => {
                        tracing::error!(%error, "a copy was watched badly; its lease will run out");
                        self.copies.retain(|_, copy| copy.watch != error.id());
                    }
                },
                lost = heartbeat.beat(&self.worker.state, &held), if !held.is_empty() => self.lose(lost),
                () = stop.cancelled() => break,
            }
        }
        // What is being asked of ECS is answered first.
        let rest = async {
            while let Some(ended) = self.watches.join_next().await {
                match ended {
                    Ok((_, Err(Error::Interrupted))) | Err(_) => {}
                    Ok((region, result)) => self.end(&region, result).await,
                }
            }
        };
        if tokio::time::timeout(LAST_STEP, rest).await.is_err() {
            self.watches.shutdown().await;
        }
        for Watched { underway: Underway { claimed, span, .. }, .. } in std::mem::take(&mut self.copies).into_values() {
            span.record("appferry.state", "RELEASED");
            let event = Event::Release { fence: claimed.fence };
            self.worker.report(&self.image.id, Report { region: claimed.region, event }).await;
        }
    }

    fn watch(&mut self, underway: Underway, stop: &CancellationToken) {
        underway.span.record("appferry.source_region_id", self.image.home.as_str());
        let (region, lost) = (underway.claimed.region.clone(), CancellationToken::new());
        let watch = Watch {
            state: self.worker.state.clone(),
            ecs: self.ecs.clone(),
            image: Arc::clone(&self.image),
            source: self.source.clone(),
            region: region.clone(),
            fence: underway.claimed.fence,
            meter: Arc::clone(&underway.meter),
            lost: lost.clone(),
            stop: stop.clone(),
        };
        let of = region.clone();
        let watch = async move { (of, watch.run().await) }.instrument(underway.span.clone());
        let watch = self.watches.spawn(watch).id();
        self.copies.insert(region, Watched { underway, lost, watch });
    }

    async fn end(&mut self, region: &RegionId, result: Result<()>) {
        let Some(Watched { underway, .. }) = self.copies.remove(region) else { return };
        let result = result.map_err(|error| match error {
            Error::Ecs(error) if error.is_source_missing() => {
                Trouble::Source { region: self.image.home.clone(), error: Arc::new(Error::Ecs(error)) }
            }
            error => Trouble::Destination(Arc::new(error)),
        });
        self.worker.conclude(&self.image.id, underway, result).await;
    }

    fn lose(&mut self, lost: Vec<RegionId>) {
        for region in lost {
            let Some(Watched { underway: Underway { span, .. }, lost, .. }) = self.copies.remove(&region) else {
                continue;
            };
            lost.cancel();
            span.record("appferry.state", "LOST");
            metrics::lost(&region);
            tracing::info!(parent: &span, image = %self.image.id, %region, "the copy was canceled or taken over");
        }
    }
}

/// Gives up what ECS makes of an image in a region, if nobody wants it any more.
pub async fn give_up(state: &State, ecs: &Ecs, image: &ImageId, region: &RegionId) {
    let given_up = async {
        let Some(copy) = state.ecs_copy_abandon(image, region).await? else { return Ok(()) };
        let Some(discarded) = copy.discarded else { return forget(state, ecs, image, region, &copy).await };
        ecs.cancel(region, &discarded).await?;
        let shown = ecs.image(region, &discarded).await?;
        if shown.is_none_or(|shown| shown.status != EcsStatus::Coming) {
            tracing::info!(%image, %region, %discarded, "the copy was given up");
            state.ecs_copy_discarded(image, region, &discarded).await?;
        }
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    };
    let given_up = tokio::time::timeout(GIVE_UP, given_up).await;
    if let Err(error) = given_up.unwrap_or_else(|_| Err("it took too long".into())) {
        tracing::warn!(error = with_causes(&*error), %image, %region, "a copy can't be given up for now");
    }
}

/// Forgets a copy that nobody wants and of which no image is known. Whoever asked ECS for it may have died before it had an answer:
/// what has the copy's name and was made for it is given up, until that can't come any more.
async fn forget(
    state: &State,
    ecs: &Ecs,
    image: &ImageId,
    region: &RegionId,
    copy: &EcsCopy,
) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (image, _) = match state.image_get(image).await {
        Err(state::Error::ImageNotFound(_)) => return Ok(state.ecs_copy_forget(image, region).await?),
        known => known?,
    };
    let source = ecs.image(&image.home, &image.source.0.parse::<EcsImageId>()?).await?;
    let named = match source {
        Some(source) => ecs.named(region, &source.name).await?,
        None => Vec::new(),
    };
    for made in named {
        if made.status == EcsStatus::Coming && made.bears(&ecs::tags(&image)) {
            ecs.cancel(region, &made.id).await?;
        }
    }
    if copy.since.after(ecs.settle()) < ecs.now() {
        state.ecs_copy_forget(&image.id, region).await?;
    }
    Ok(())
}

/// Whoever asks for the copy into one region, and watches it.
struct Watch {
    state: State,
    ecs: Ecs,
    image: Arc<Image>,
    source: EcsImageId,
    region: RegionId,
    fence: u64,
    meter: Arc<Meter>,
    /// Canceled when the claim is lost.
    lost: CancellationToken,
    /// Canceled when the claim is to be handed back.
    stop: CancellationToken,
}

/// What a watch knows.
#[derive(Default)]
struct Known {
    /// What is remembered of the copy.
    copy: Option<EcsCopy>,
    /// Whether ECS was at work on it since this watch began.
    moved: bool,
    /// Since when the copy's name is said to be taken while nothing of that name is listed.
    taken: Option<Timestamp>,
}

impl Watch {
    /// Watches until the copy has arrived, failed, is no longer this worker's, or is to be handed back ([`Error::Interrupted`]).
    async fn run(self) -> Result<()> {
        let result = self.watch().await;
        if self.lost.is_cancelled() || matches!(result, Err(Error::Overtaken)) {
            give_up(&self.state, &self.ecs, &self.image.id, &self.region).await;
        }
        result
    }

    async fn watch(&self) -> Result<()> {
        self.meter.set(Progress { total: self.image.size, ..Progress::default() });
        let mut known = Known::default();
        let mut troubles = 0;
        while !self.lost.is_cancelled() && !self.stop.is_cancelled() {
            let poll = self.ecs.poll();
            let wait = match self.step(&mut known).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    troubles = 0;
                    poll
                }
                Err(error) if !passes(&error) || troubles >= TROUBLES => return Err(error),
                Err(error) => {
                    let wait = poll.saturating_mul(1 << troubles).min(LONGEST_WAIT);
                    troubles += 1;
                    tracing::info!(image = %self.image.id, region = %self.region, error = with_causes(&error), troubles, "the copy is looked at again later");
                    wait.max(error.retry_after().unwrap_or_default())
                }
            };
            // Not all regions at once.
            let wait = wait.mul_f64(1.0 + rand::random::<f64>() / 4.0);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.lost.cancelled() => {}
                () = self.stop.cancelled() => {}
            }
        }
        Err(if self.lost.is_cancelled() { Error::Overtaken } else { Error::Interrupted })
    }

    /// Looks at the copy and does what is to be done about it. Returns whether it has arrived. Is never given up half-way: what ECS
    /// answers must not be lost.
    async fn step(&self, known: &mut Known) -> Result<bool> {
        let (home, region) = (&self.image.home, &self.region);
        let copy = match known.copy.take() {
            Some(copy) => copy,
            None => owned(self.state.ecs_copy_begin(&self.image.id, region, self.fence).await)?,
        };
        let copy = known.copy.insert(copy);
        let now = self.ecs.now();
        let step = if let Some(id) = &copy.image {
            copy.watch(self.ecs.image(region, id).await?.as_ref(), now, self.ecs.settle())
        } else {
            // It is called what its source is called.
            let name = self.ecs.source(home, &self.source).await?.name;
            match copy.begin(&self.ecs.named(region, &name).await?, &ecs::tags(&self.image)) {
                EcsStep::Copy => {
                    known.moved = true;
                    self.ask(copy, &name, &mut known.taken).await?;
                    return Ok(false);
                }
                EcsStep::Refuse(image) => return Err(ecs::Error::Foreign { name, image }.into()),
                step => step,
            }
        };
        let total = self.image.size;
        match step {
            EcsStep::Wait(percent) => {
                known.moved = true;
                self.meter.set(Progress { total, copied: total / 100 * u64::from(percent), skipped: 0 });
            }
            EcsStep::Finish => {
                self.note(copy, EcsCopy { finished: true, ..copy.clone() }).await?;
                let (copied, skipped) = if known.moved { (total, 0) } else { (0, total) };
                self.meter.set(Progress { total, copied, skipped });
                return Ok(true);
            }
            EcsStep::Adopt(id) => {
                tracing::info!(image = %self.image.id, %region, %id, "an image that was made for the app before is taken for its copy");
                self.note(copy, copy.made(id, now)).await?;
            }
            EcsStep::Cancel(id) => self.ecs.cancel(region, &id).await?,
            EcsStep::Delete(id) => {
                tracing::info!(image = %self.image.id, %region, %id, "an image that was made for the app and is of no use is deleted");
                self.ecs.delete(region, &id).await?;
            }
            EcsStep::Renew(lost) => {
                let before = copy.clone();
                self.note(copy, before.next(now)).await?;
                match (before.image, lost) {
                    (Some(image), Some(status)) => return Err(ecs::Error::Ended { image, status }.into()),
                    (Some(image), None) if !before.finished => return Err(ecs::Error::Vanished(image).into()),
                    _ => {}
                }
            }
            EcsStep::Copy | EcsStep::Refuse(_) => {}
        }
        Ok(false)
    }

    /// Asks ECS for the copy. `taken` is since when it says that the name is taken.
    async fn ask(&self, copy: &mut EcsCopy, name: &str, taken: &mut Option<Timestamp>) -> Result<()> {
        let order =
            Order { image: &self.image, source: &self.source, to: &self.region, name, generation: copy.generation };
        let made = match self.ecs.copy(&self.image.home, &order).await {
            // What has the name may not be listed yet, and be ours.
            Err(error) if error.is("InvalidImageName.Duplicated") => {
                let now = self.ecs.now();
                let settled = taken.get_or_insert(now).after(self.ecs.settle()) <= now;
                return if settled { Err(error.into()) } else { Ok(()) };
            }
            answer => answer?,
        };
        tracing::info!(image = %self.image.id, region = %self.region, %made, "ECS copies");
        let next = copy.made(made, self.ecs.now());
        let noted = self.state.ecs_copy_made(&self.image.id, &self.region, &next).await;
        noted.map_err(|error| Error::Journal(error.to_string()))?;
        *copy = next;
        Ok(())
    }

    /// Remembers how the copy goes on.
    async fn note(&self, copy: &mut EcsCopy, next: EcsCopy) -> Result<()> {
        owned(self.state.ecs_copy_note(&self.image.id, &self.region, self.fence, &next).await)?;
        *copy = next;
        Ok(())
    }
}

/// What the database answered to somebody whose claim may not be good any more.
fn owned<T>(answer: state::Result<std::result::Result<T, Stale>>) -> Result<T> {
    answer.map_err(|error| Error::Journal(error.to_string()))?.map_err(|_| Error::Overtaken)
}

/// Whether it may pass while the copy itself goes on.
fn passes(error: &Error) -> bool {
    let ended = match error {
        Error::Ecs(error) => error.ends_the_copy(),
        error => matches!(error, Error::Overtaken),
    };
    error.verdict() == Verdict::Retry && !ended
}
