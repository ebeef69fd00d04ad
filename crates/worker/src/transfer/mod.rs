//! Transfers an image from one source to the regions that it feeds.

mod attach;
mod blob_fanout;
mod blob_write;
mod byte_channel;
mod destination;
mod driver;
mod fanout;
mod lag;
mod member;
mod meter;
mod reader;
mod schedule;

use std::{sync::Arc, time::Duration};

use domain::{Backoff, Descriptor, Digest, ImageName, RegionId};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use storage::{BoundedSource, Error, ManifestGraph, Source, Verdict};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

pub use destination::{CopySummary, Destination};
pub use fanout::{PendingJoin, Waits};
pub use meter::Meter;

use self::{
    destination::MissingBlobs,
    fanout::{Fanout, MAX_WEIGHT},
};
use super::pacing::Paces;

/// How often a copy is resumed within one attempt after its connection broke, and a read of its source reopened without
/// receiving anything.
const RESUMPTIONS: Backoff =
    Backoff { first: Duration::from_millis(400), longest: Duration::from_secs(2), attempts: 4 };
/// The longest `Retry-After` for which a copy waits within one attempt.
const LONGEST_RESUMPTION_WAIT: Duration = Duration::from_secs(5);

/// Why a copy failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CopyError {
    /// The source failed.
    #[error("source region {region}: {error}")]
    Source {
        /// The region of the source.
        region: RegionId,
        /// The error of its store.
        error: Arc<Error>,
        /// Whether the source is read over a network.
        is_remote: bool,
    },
    /// The destination failed.
    #[error("{0}")]
    Destination(Arc<Error>),
}

impl CopyError {
    /// Returns the error of the store.
    #[must_use]
    pub fn error(&self) -> &Error {
        match self {
            Self::Source { error, .. } | Self::Destination(error) => error,
        }
    }
}

impl From<Error> for CopyError {
    fn from(error: Error) -> Self {
        Self::Destination(Arc::new(error))
    }
}

/// The source of an image.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ImageSource {
    pub region: RegionId,
    /// The store of the region.
    pub store: Arc<dyn Source>,
    /// The store's name for the image.
    pub name: ImageName,
    /// The registered root. The image is read by this digest, even if its name shows another root meanwhile.
    pub root: Descriptor,
    /// Entries of the image's indexes that were absent when it was registered.
    pub absent: Arc<[Digest]>,
    /// The rate limiters of the region.
    pub paces: Arc<Paces>,
}

type SharedGraph = Shared<BoxFuture<'static, Result<Arc<ManifestGraph>, Arc<Error>>>>;

/// The transfer of an image from one source. Its manifests are read once, and each blob once for all destinations that
/// keep up.
#[derive(Debug)]
pub struct Transfer {
    source: Arc<ImageSource>,
    tree: SharedGraph,
    fanout: Arc<Fanout>,
    _driver: AbortOnDropHandle<()>,
}

/// Why a destination stopped.
enum Stopped {
    /// The source failed.
    Source(Arc<Error>),
    /// The destination failed.
    Failed(Error),
}

impl Transfer {
    /// Starts reading an image for destinations that join later.
    pub fn start(source: ImageSource, waits: Waits) -> Self {
        let store: Arc<dyn Source> = Arc::new(BoundedSource { store: source.store, deadline: waits.stall });
        let source = Arc::new(ImageSource { store, ..source });
        let tree = read_graph(Arc::clone(&source)).boxed().shared();
        let fanout = Arc::new(Fanout::new(waits, MAX_WEIGHT));
        let drive = drive(Arc::clone(&source), tree.clone(), Arc::clone(&fanout));
        Self { source, tree, fanout, _driver: AbortOnDropHandle::new(tokio::spawn(drive)) }
    }

    /// Announces a destination. Destinations that are ready earlier wait a little for it.
    pub fn announce(&self) -> PendingJoin {
        self.fanout.announce()
    }

    /// Whether no further destination can join.
    pub fn is_closed(&self) -> bool {
        self.fanout.is_closed()
    }

    /// Copies the image to a destination, together with the other destinations while it keeps up with them.
    pub async fn copy_to(
        &self,
        mut destination: Destination,
        pending_join: PendingJoin,
    ) -> Result<CopySummary, CopyError> {
        let tree = self.tree.clone().await.map_err(|error| self.source_error(error))?;
        let mut pending_join = Some(pending_join);
        loop {
            let missing = destination.plan(&tree).await?;
            match self.feed_destination(pending_join.take(), &tree, &destination, missing).await {
                Ok(summary) => return Ok(summary),
                Err(Stopped::Source(error)) => return Err(self.source_error(error)),
                // The loop ends, because a registry has few upload modes and the number of redirects is limited.
                Err(Stopped::Failed(error)) if error.is_resent() => {
                    tracing::info!(region = %destination.region, %error, "upload mode rejected; resuming with the next one");
                }
                Err(Stopped::Failed(error)) => match resumption(&error, destination.resumed, rand::random()) {
                    Some(wait) => {
                        tracing::info!(region = %destination.region, %error, ?wait, "transfer interrupted; resuming");
                        destination.resumed += 1;
                        sleep(wait).await;
                    }
                    None => return Err(error.into()),
                },
            }
        }
    }

    fn source_error(&self, error: Arc<Error>) -> CopyError {
        CopyError::Source { region: self.source.region.clone(), error, is_remote: self.source.store.is_remote() }
    }

    /// Sends a destination its missing blobs.
    async fn feed_destination(
        &self,
        pending_join: Option<PendingJoin>,
        tree: &ManifestGraph,
        destination: &Destination,
        missing: MissingBlobs,
    ) -> Result<CopySummary, Stopped> {
        let (membership, deliveries) = self.fanout.join(&destination.region, &missing);
        drop(pending_join);
        let result = destination.receive(tree, &self.source.region, missing, deliveries, &membership.member).await;
        result.map_err(|error| match (error, membership.member.failure()) {
            (Error::Interrupted, Some(failure)) => Stopped::Source(failure),
            (error, _) => Stopped::Failed(error),
        })
    }
}

async fn read_graph(source: Arc<ImageSource>) -> Result<Arc<ManifestGraph>, Arc<Error>> {
    let ImageSource { store, name, root, absent, .. } = &*source;
    Ok(Arc::new(ManifestGraph::read_with_attachments(&**store, name, root, absent).await?))
}

/// Sends blobs to the destinations while the transfer lives. Closes the fan-out on every exit, so that no destination
/// waits forever.
async fn drive(source: Arc<ImageSource>, tree: SharedGraph, fanout: Arc<Fanout>) {
    let fanout = scopeguard::guard(fanout, |fanout| fanout.close());
    // Each destination reads the error of the manifests by itself.
    if let Ok(tree) = tree.await {
        Arc::clone(&fanout).drive(source, tree).await;
    }
}

/// Returns how long to wait before a copy is resumed within the same attempt; `None` if it is not resumed. `jitter` is
/// from 0 to 1.
pub fn resumption(error: &Error, resumed: u32, jitter: f64) -> Option<Duration> {
    let broken = matches!(
        error,
        Error::Transport { .. }
            | Error::Status { .. }
            | Error::Refused { .. }
            | Error::UploadGone(_)
            | Error::WrittenWrong { .. }
    );
    let wait = RESUMPTIONS.wait(resumed, jitter)?;
    let wait = error.retry_after().unwrap_or(wait);
    (broken && error.verdict() == Verdict::Retry && wait <= LONGEST_RESUMPTION_WAIT).then_some(wait)
}
