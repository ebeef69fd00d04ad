//! What is done for all by one process at a time: copies whose worker has gone are handed back, synchronizations that have ended
//! long ago are forgotten, and uploads and copies of ECS that nobody will go on with are given up.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ecs::give_up;
use crate::{
    domain::{WorkerId, with_causes},
    metrics,
    region::{Backend, Ecs, Stores},
    state::{self, State},
};

/// How long the duty is held without being renewed, as a multiple of the interval in which house is kept.
const LEASE: u32 = 3;

/// How house is kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The process's name.
    pub id: WorkerId,
    /// How often.
    pub interval: Duration,
    /// How long synchronizations are kept after they have ended.
    pub keep: Duration,
    /// How long leases last.
    pub lease: Duration,
    /// The longest wait before an attempt is repeated.
    pub longest_wait: Duration,
}

/// Keeps house when it is this process's turn.
#[derive(Debug, Clone)]
pub struct Housekeeper {
    state: State,
    backend: Backend,
    settings: Settings,
}

impl Housekeeper {
    /// A housekeeper for a state and what keeps the images.
    #[must_use]
    pub fn new(state: State, backend: Backend, settings: Settings) -> Self {
        Self { state, backend, settings }
    }

    /// Keeps house whenever it is this process's turn, until `stop` is canceled.
    pub async fn run(self, stop: CancellationToken) {
        let Settings { id, interval, .. } = &self.settings;
        let mut held = false;
        while !stop.is_cancelled() {
            match self.state.housekeeping_take(id, *interval * LEASE).await {
                Ok(ours) => {
                    if ours && !held {
                        tracing::info!(%id, "keeping house from now on");
                    }
                    if held && !ours {
                        metrics::queues(Vec::new());
                    }
                    held = ours;
                    if ours {
                        self.keep(&stop).await;
                    }
                }
                Err(error) => tracing::warn!(error = with_causes(&error), "who keeps house can't be found out for now"),
            }
            let wait = interval.mul_f64(1.0 - rand::random::<f64>() / 4.0);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        metrics::queues(Vec::new());
        if held && let Err(error) = self.state.housekeeping_leave(id).await {
            tracing::debug!(error = with_causes(&error), "the next one has to wait to keep house");
        }
    }

    async fn keep(&self, stop: &CancellationToken) {
        let trouble = |error: state::Error| tracing::warn!(error = with_causes(&error), "house can't be kept for now");
        if metrics::are_exported() {
            match self.state.queues().await {
                Ok(queues) => metrics::queues(queues),
                Err(error) => trouble(error),
            }
        }
        match self.state.replica_rescue().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "copies whose worker was not heard of any more wait for another one"),
            Err(error) => trouble(error),
        }
        let Settings { lease, longest_wait, .. } = self.settings;
        match self.state.replica_pull_back(lease, longest_wait).await {
            Ok(0) => {}
            Ok(count) => tracing::warn!(
                count,
                "the database's clock was set back; copies that would have waited for it were requeued"
            ),
            Err(error) => trouble(error),
        }
        while !stop.is_cancelled() {
            match self.state.synchronization_prune(self.settings.keep).await {
                Ok((0, _)) => break,
                Ok((count, more)) => {
                    tracing::info!(count, "synchronizations that ended long ago were forgotten");
                    if !more {
                        break;
                    }
                }
                Err(error) => {
                    trouble(error);
                    break;
                }
            }
        }
        match self.state.nonce_prune().await {
            Ok(count) => tracing::debug!(count, "nonces of requests that are too old were forgotten"),
            Err(error) => trouble(error),
        }
        match &self.backend {
            Backend::Stores(stores) => self.sweep(stores).await,
            Backend::Ecs(ecs) => self.give_up(ecs).await,
        }
    }

    /// Gives up the copies of ECS that nobody wants any more.
    async fn give_up(&self, ecs: &Ecs) {
        match self.state.ecs_copy_abandoned().await {
            Ok(abandoned) => {
                for (image, region) in abandoned {
                    if ecs.has(&region) {
                        give_up(&self.state, ecs, &image, &region).await;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "abandoned copies can't be looked for for now");
            }
        }
    }

    /// Gives up the uploads that nobody will go on with: of copies that failed for good, were canceled, or whose image is gone.
    async fn sweep(&self, stores: &Stores) {
        let abandoned = match self.state.upload_abandoned().await {
            Ok(abandoned) => abandoned,
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "abandoned uploads can't be looked for for now");
                return;
            }
        };
        for upload in abandoned {
            let Some(store) = stores.get(&upload.region) else { continue };
            let (image, region) = (&upload.image, &upload.region);
            match store.abort(&upload.session).await {
                Ok(()) => {
                    if let Err(error) = self.state.upload_forget(image, region, upload.blob).await {
                        tracing::warn!(error = with_causes(&error), %image, %region, "an upload that was given up could not be forgotten");
                    }
                }
                Err(error) => {
                    tracing::warn!(error = with_causes(&error), %image, %region, "an abandoned upload can't be given up for now");
                }
            }
        }
    }
}
