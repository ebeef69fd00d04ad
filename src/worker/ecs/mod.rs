//! Copies that ECS makes: asked for, watched to their end, and given up when nobody wants them any more. Whatever is known of one is
//! in the database before anything is done about it, so that whoever claims the replica next goes on with the same copy.

mod abandoned;
mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use abandoned::give_up;

use self::watch::Watch;
use super::{
    Worker,
    active_copy::ActiveCopy,
    heartbeat::Heartbeat,
    transfer::{Copied, CopyError},
};
use crate::{
    db::Report,
    domain::{EcsImageId, Event, Image, RegionId, Verification},
    metrics,
    region::{Ecs, Error, Result},
};

/// How long it is waited at a shutdown for what is being asked of ECS.
const LAST_STEP: Duration = Duration::from_secs(3);

/// An image on its way to the regions of a claim.
#[derive(Debug)]
pub struct EcsJob {
    worker: Worker,
    ecs: Ecs,
    image: Arc<Image>,
    source: EcsImageId,
    copies: BTreeMap<RegionId, Watched>,
    watches: JoinSet<(RegionId, Result<()>)>,
}

/// How a watch ended.
type Ended = std::result::Result<(RegionId, Result<()>), task::JoinError>;

/// A copy that is being watched.
#[derive(Debug)]
struct Watched {
    active: ActiveCopy,
    /// Canceled when the claim is lost.
    lost: CancellationToken,
    watch: task::Id,
}

impl EcsJob {
    /// A job for the image that the home region knows as `source`.
    pub fn new(worker: Worker, ecs: Ecs, image: Image, source: EcsImageId) -> Self {
        let image = Arc::new(image);
        Self { worker, ecs, image, source, copies: BTreeMap::new(), watches: JoinSet::new() }
    }

    /// Has ECS carry the image to each of the regions, and reports on each as soon as it has ended.
    pub async fn run(mut self, regions: Vec<ActiveCopy>, stop: CancellationToken) {
        for active in regions {
            self.watch(active, &stop);
        }
        let settings = Arc::clone(&self.worker.settings);
        let mut heartbeat = Heartbeat::new(self.image.id.clone(), settings.lease, settings.heartbeat);
        while !self.watches.is_empty() {
            let held: Vec<_> = self.copies.values().map(|copy| copy.active.held()).collect();
            tokio::select! {
                Some(ended) = self.watches.join_next() => self.ended(ended).await,
                lost = heartbeat.beat(&self.worker.state, &held), if !held.is_empty() => self.lose(lost),
                () = stop.cancelled() => break,
            }
        }
        // What is being asked of ECS is answered first.
        let rest = async {
            while let Some(ended) = self.watches.join_next().await {
                self.ended(ended).await;
            }
        };
        if tokio::time::timeout(LAST_STEP, rest).await.is_err() {
            self.watches.shutdown().await;
        }
        for Watched { active, .. } in std::mem::take(&mut self.copies).into_values() {
            active.span.record("appferry.state", "RELEASED");
            let event = Event::Release { fence: active.claimed.fence };
            self.worker.report(&self.image.id, Report { region: active.claimed.region.clone(), event }).await;
        }
    }

    fn watch(&mut self, active: ActiveCopy, stop: &CancellationToken) {
        active.span.record("appferry.source_region_id", self.image.home.as_str());
        let (region, lost) = (active.claimed.region.clone(), CancellationToken::new());
        let watch = Watch {
            state: self.worker.state.clone(),
            ecs: self.ecs.clone(),
            image: Arc::clone(&self.image),
            source: self.source.clone(),
            region: region.clone(),
            fence: active.claimed.fence,
            meter: Arc::clone(&active.meter),
            lost: lost.clone(),
            stop: stop.clone(),
        };
        let of = region.clone();
        let watch = async move { (of, watch.run().await) }.instrument(active.span.clone());
        let watch = self.watches.spawn(watch).id();
        self.copies.insert(region, Watched { active, lost, watch });
    }

    /// A watch has ended. One that was interrupted is handed back with those that still go on.
    async fn ended(&mut self, ended: Ended) {
        match ended {
            Ok((_, Err(Error::Interrupted))) => {}
            Ok((region, result)) => self.conclude(&region, result).await,
            Err(error) => {
                tracing::error!(%error, image = %self.image.id, "copy task panicked; will retry");
                let region = self.copies.iter().find(|(_, copy)| copy.watch == error.id());
                if let Some(region) = region.map(|(region, _)| region.clone()) {
                    self.conclude(&region, Err(Error::Interrupted)).await;
                }
            }
        }
    }

    async fn conclude(&mut self, region: &RegionId, result: Result<()>) {
        let Some(Watched { active, .. }) = self.copies.remove(region) else { return };
        // What ECS has copied can't be read.
        let result = result.map(|()| Copied::from(Verification::Trusted)).map_err(|error| match error {
            Error::Ecs(error) if error.is_source_missing() => CopyError::Source {
                region: self.image.home.clone(),
                error: Arc::new(Error::Ecs(error)),
                is_remote: false,
            },
            error => CopyError::Destination(Arc::new(error)),
        });
        self.worker.conclude(&self.image.id, active, result).await;
    }

    fn lose(&mut self, lost: Vec<RegionId>) {
        for region in lost {
            let Some(Watched { active: ActiveCopy { span, .. }, lost, .. }) = self.copies.remove(&region) else {
                continue;
            };
            lost.cancel();
            span.record("appferry.state", "LOST");
            metrics::lost(&region);
            tracing::info!(parent: &span, image = %self.image.id, %region, "claim lost: the copy was canceled or taken over");
        }
    }
}
