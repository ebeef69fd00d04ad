//! Requests one ECS copy and polls it until it has ended.

use std::{sync::Arc, time::Duration};

use db::{self, Db};
use domain::{Backoff, EcsCopy, EcsImageId, EcsStep, Image, Progress, RegionId, Stale, Timestamp, with_causes};
use storage::{
    Ecs, Error, Result, Verdict,
    ecs::{self, Order},
};
use tokio_util::sync::CancellationToken;

use super::{super::transfer::Meter, abandon};

/// The number of consecutive errors after which an attempt fails, if all of them are transient.
const MAX_ERRORS: u32 = 9;
/// The longest wait after a transient error, unless the provider asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The watch of an ECS copy into one region.
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
    /// Canceled when the claim is to be released.
    pub stop: CancellationToken,
}

/// The state of a watch between two polls.
#[derive(Default)]
struct Progression {
    /// The recorded state of the copy.
    copy: Option<EcsCopy>,
    /// Whether ECS has worked on the copy since this watch started.
    has_moved: bool,
    /// Time since which ECS reports that the name is taken, although it lists no image of that name.
    name_taken_since: Option<Timestamp>,
}

impl Watch {
    /// Watches until the copy is available or has failed, the claim is lost ([`Error::Overtaken`]), or the claim is to
    /// be released ([`Error::Interrupted`]).
    pub async fn run(self) -> Result<()> {
        let result = self.poll_until_done().await;
        if self.lost.is_cancelled() || matches!(result, Err(Error::Overtaken)) {
            abandon(&self.state, &self.ecs, &self.image.id, &self.region).await;
        }
        result
    }

    async fn poll_until_done(&self) -> Result<()> {
        self.meter.set(Progress { total: self.image.size, ..Progress::default() });
        let mut progression = Progression::default();
        let mut errors = 0;
        while !self.lost.is_cancelled() && !self.stop.is_cancelled() {
            let poll = self.ecs.poll();
            let wait = match self.step(&mut progression).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    errors = 0;
                    poll
                }
                Err(error) => {
                    let backoff = Backoff { first: poll, longest: LONGEST_WAIT, attempts: MAX_ERRORS };
                    let wait = is_transient(&error).then(|| backoff.wait(errors, rand::random())).flatten();
                    let Some(wait) = wait else { return Err(error) };
                    errors += 1;
                    tracing::info!(
                        image = %self.image.id, region = %self.region, error = with_causes(&error), errors,
                        "failed to poll an ECS copy; will retry"
                    );
                    wait.max(error.retry_after().unwrap_or_default())
                }
            };
            // Jittered, so that regions are not polled at the same time.
            let wait = wait.mul_f64(1.0 + rand::random::<f64>() / 4.0);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.lost.cancelled() => {}
                () = self.stop.cancelled() => {}
            }
        }
        Err(if self.lost.is_cancelled() { Error::Overtaken } else { Error::Interrupted })
    }

    /// Reads the status of the copy and takes the next step. Returns whether the copy is available. Never canceled
    /// half-way, because a response of ECS must be recorded.
    async fn step(&self, progression: &mut Progression) -> Result<bool> {
        let (home, region) = (&self.image.home, &self.region);
        let copy = match progression.copy.take() {
            Some(copy) => copy,
            None => require_claim(self.state.ecs_copy_begin(&self.image.id, region, self.fence).await)?,
        };
        let copy = progression.copy.insert(copy);
        let now = self.ecs.now();
        let step = if let Some(id) = &copy.image {
            copy.watch(self.ecs.image(region, id).await?.as_ref(), now, self.ecs.settle())
        } else {
            // The copy has the name of its source.
            let name = self.ecs.source(home, &self.source).await?.name;
            match copy.begin(&self.ecs.named(region, &name).await?, &ecs::tags(&self.image)) {
                EcsStep::Copy => {
                    progression.has_moved = true;
                    self.request_copy(copy, &name, &mut progression.name_taken_since).await?;
                    return Ok(false);
                }
                EcsStep::Refuse(image) => return Err(ecs::Error::Foreign { name: name.into(), image }.into()),
                step => step,
            }
        };
        let total = self.image.size;
        match step {
            EcsStep::Wait(percent) => {
                progression.has_moved = true;
                self.meter.set(Progress { total, copied: total / 100 * u64::from(percent), skipped: 0 });
            }
            EcsStep::Finish => {
                self.record(copy, EcsCopy { finished: true, ..copy.clone() }).await?;
                let (copied, skipped) = if progression.has_moved { (total, 0) } else { (0, total) };
                self.meter.set(Progress { total, copied, skipped });
                return Ok(true);
            }
            EcsStep::Adopt(id) => {
                tracing::info!(image = %self.image.id, %region, %id, "adopting an ECS image of an earlier copy");
                self.record(copy, copy.with_image(id, now)).await?;
            }
            EcsStep::Cancel(id) => self.ecs.cancel(region, &id).await?,
            EcsStep::Delete(id) => {
                tracing::info!(image = %self.image.id, %region, %id, "deleting an unusable ECS image of an earlier copy");
                self.ecs.delete(region, &id).await?;
            }
            EcsStep::Renew(lost) => {
                let before = copy.clone();
                self.record(copy, before.next(now)).await?;
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

    /// Requests the copy from ECS and records the id of the image. `name_taken_since` is the time since which ECS
    /// reports the name as taken.
    async fn request_copy(
        &self,
        copy: &mut EcsCopy,
        name: &str,
        name_taken_since: &mut Option<Timestamp>,
    ) -> Result<()> {
        let order =
            Order { image: &self.image, source: &self.source, to: &self.region, name, generation: copy.generation };
        let id = match self.ecs.copy(&self.image.home, &order).await {
            // The image with this name may belong to this copy and not be listed yet.
            Err(error) if error.is("InvalidImageName.Duplicated") => {
                let now = self.ecs.now();
                let is_settled = name_taken_since.get_or_insert(now).after(self.ecs.settle()) <= now;
                return if is_settled { Err(error.into()) } else { Ok(()) };
            }
            result => result?,
        };
        tracing::info!(image = %self.image.id, region = %self.region, %id, "ECS copy started");
        let next = copy.with_image(id, self.ecs.now());
        let recorded = self.state.ecs_copy_record_image(&self.image.id, &self.region, &next).await;
        recorded.map_err(|error| Error::Journal(error.to_string()))?;
        *copy = next;
        Ok(())
    }

    /// Records the next state of the copy.
    async fn record(&self, copy: &mut EcsCopy, next: EcsCopy) -> Result<()> {
        require_claim(self.state.ecs_copy_save(&self.image.id, &self.region, self.fence, &next).await)?;
        *copy = next;
        Ok(())
    }
}

/// Converts the result of a write that is rejected if the claim is stale.
fn require_claim<T>(result: db::Result<std::result::Result<T, Stale>>) -> Result<T> {
    result.map_err(|error| Error::Journal(error.to_string()))?.map_err(|_| Error::Overtaken)
}

/// Whether an error may go away while the copy itself continues.
fn is_transient(error: &Error) -> bool {
    let is_final = match error {
        Error::Ecs(error) => error.ends_the_copy(),
        error => matches!(error, Error::Overtaken),
    };
    error.verdict() == Verdict::Retry && !is_final
}
