//! One copy, asked for and watched.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{super::transfer::Meter, give_up};
use crate::{
    db::{self, Db},
    domain::{EcsCopy, EcsImageId, EcsStep, Image, Progress, RegionId, Stale, Timestamp, with_causes},
    region::{
        Ecs, Error, Result, Verdict,
        ecs::{self, Order},
    },
};

/// After how many troubles in a row that may pass an attempt is given up.
const TROUBLES: u32 = 8;
/// The longest wait after one of them, unless the provider asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whoever asks for the copy into one region, and watches it.
pub struct Watch {
    pub state: Db,
    pub ecs: Ecs,
    pub image: Arc<Image>,
    pub source: EcsImageId,
    pub region: RegionId,
    /// The fence of the claim.
    pub fence: u64,
    pub meter: Arc<Meter>,
    /// Canceled when the claim is lost.
    pub lost: CancellationToken,
    /// Canceled when the claim is to be handed back.
    pub stop: CancellationToken,
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
    pub async fn run(self) -> Result<()> {
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
                EcsStep::Refuse(image) => return Err(ecs::Error::Foreign { name: name.into(), image }.into()),
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
                self.note(copy, copy.with_image(id, now)).await?;
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
        let next = copy.with_image(made, self.ecs.now());
        let noted = self.state.ecs_copy_record_image(&self.image.id, &self.region, &next).await;
        noted.map_err(|error| Error::Journal(error.to_string()))?;
        *copy = next;
        Ok(())
    }

    /// Remembers how the copy goes on.
    async fn note(&self, copy: &mut EcsCopy, next: EcsCopy) -> Result<()> {
        owned(self.state.ecs_copy_save(&self.image.id, &self.region, self.fence, &next).await)?;
        *copy = next;
        Ok(())
    }
}

/// What the database answered to somebody whose claim may not be good any more.
fn owned<T>(answer: db::Result<std::result::Result<T, Stale>>) -> Result<T> {
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
