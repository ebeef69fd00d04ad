//! An image on its way from one source to the regions that it feeds.

mod attach;
mod blob_fanout;
mod byte_channel;
mod destination;
mod driver;
mod fanout;
mod lag;
mod member;
mod reader;
mod schedule;

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

pub use destination::{Copied, Destination, Meter};
pub use fanout::{Boarding, Waits};

use self::{
    destination::MissingBlobs,
    fanout::{Fanout, WEIGHT_AT_ONCE},
};
use super::pacing::Paces;
use crate::{
    domain::{Descriptor, Digest, ImageName, RegionId},
    region::{BoundedSource, Error, Source, Tree, Verdict},
};

/// How often a destination resumes within one attempt after its connection broke, and the wait before the first time.
const RESUMPTIONS: u32 = 3;
const RESUMPTION_WAIT: Duration = Duration::from_millis(200);
/// The longest wait that a store may ask for within one attempt.
const LONGEST_RESUMPTION_WAIT: Duration = Duration::from_secs(5);

/// Why a destination has not got the image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CopyError {
    /// The source failed.
    #[error("the source, {region}: {error}")]
    Source {
        /// The source's region.
        region: RegionId,
        /// What was wrong.
        error: Arc<Error>,
        /// Whether it is read over a network.
        is_remote: bool,
    },
    /// The destination failed.
    #[error("{0}")]
    Destination(Arc<Error>),
}

impl CopyError {
    /// What was wrong.
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

/// Where an image is read.
#[derive(Debug, Clone)]
pub struct ImageSource {
    /// The region.
    pub region: RegionId,
    /// Its store.
    pub store: Arc<dyn Source>,
    /// The store's name for the image.
    pub name: ImageName,
    /// The image's root. What was registered is what is copied: it is read by its digest, whatever the source shows by now.
    pub root: Descriptor,
    /// Entries of its indexes that need not be there.
    pub absent: Arc<[Digest]>,
    /// How fast it may be read.
    pub paces: Arc<Paces>,
}

type SharedTree = Shared<BoxFuture<'static, Result<Arc<Tree>, Arc<Error>>>>;

/// An image on its way from one source. Its manifests are read once, and each blob once for all destinations that keep up.
#[derive(Debug)]
pub struct Transfer {
    source: Arc<ImageSource>,
    tree: SharedTree,
    fanout: Arc<Fanout>,
    _driver: AbortOnDropHandle<()>,
}

/// Why a destination stopped receiving.
enum Stopped {
    /// The source failed.
    Source(Arc<Error>),
    /// The destination failed.
    Failed(Error),
}

impl Transfer {
    /// Starts to read an image for the destinations that are to come.
    pub fn start(source: ImageSource, waits: Waits) -> Self {
        let store: Arc<dyn Source> = Arc::new(BoundedSource { store: source.store, deadline: waits.stall });
        let source = Arc::new(ImageSource { store, ..source });
        let tree = read_tree(Arc::clone(&source)).boxed().shared();
        let fanout = Arc::new(Fanout::new(waits, WEIGHT_AT_ONCE));
        let drive = drive(Arc::clone(&source), tree.clone(), Arc::clone(&fanout));
        Self { source, tree, fanout, _driver: AbortOnDropHandle::new(tokio::spawn(drive)) }
    }

    /// Announces a destination: those that are ready earlier wait for it a little.
    pub fn board(&self) -> Boarding {
        self.fanout.board()
    }

    /// Whether it can take no further destinations.
    pub fn is_closed(&self) -> bool {
        self.fanout.is_closed()
    }

    /// Copies the image to a destination, together with the others if it keeps up with them.
    pub async fn copy_to(&self, mut destination: Destination, boarding: Boarding) -> Result<Copied, CopyError> {
        let tree = self.tree.clone().await.map_err(|error| self.source_error(error))?;
        let mut boarding = Some(boarding);
        loop {
            let missing = destination.plan(&tree).await?;
            match self.feed(boarding.take(), &tree, &destination, missing).await {
                Ok(copied) => return Ok(copied),
                Err(Stopped::Source(error)) => return Err(self.source_error(error)),
                // A registry's ways are few, and so are the places that one request is followed to: this ends by itself.
                Err(Stopped::Failed(error)) if error.is_resent() => {
                    tracing::info!(region = %destination.region, %error, "sending the blob in another way");
                }
                Err(Stopped::Failed(error)) => match resumption(&error, destination.resumed) {
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

    /// Feeds a destination.
    async fn feed(
        &self,
        boarding: Option<Boarding>,
        tree: &Tree,
        destination: &Destination,
        missing: MissingBlobs,
    ) -> Result<Copied, Stopped> {
        let (seat, deliveries) = self.fanout.join(&destination.region, &missing);
        drop(boarding);
        let received = destination.receive(tree, &self.source.region, missing, deliveries, &seat.member).await;
        received.map_err(|error| match (error, seat.member.failure()) {
            (Error::Interrupted, Some(failure)) => Stopped::Source(failure),
            (error, _) => Stopped::Failed(error),
        })
    }
}

async fn read_tree(source: Arc<ImageSource>) -> Result<Arc<Tree>, Arc<Error>> {
    let ImageSource { store, name, root, absent, .. } = &*source;
    Ok(Arc::new(Tree::read_with_attachments(&**store, name, root, absent).await?))
}

/// Sends blobs to the destinations for as long as the transfer lives. However it ends, destinations that wait for something find out.
async fn drive(source: Arc<ImageSource>, tree: SharedTree, fanout: Arc<Fanout>) {
    let fanout = scopeguard::guard(fanout, |fanout| fanout.close());
    // Every destination finds out by itself that the source's manifests can't be read.
    if let Ok(tree) = tree.await {
        Arc::clone(&fanout).drive(source, tree).await;
    }
}

/// How long to wait before a destination resumes within the same attempt; nothing if it should not.
pub fn resumption(error: &Error, resumed: u32) -> Option<Duration> {
    let broken = matches!(
        error,
        Error::Transport { .. }
            | Error::Status { .. }
            | Error::Refused { .. }
            | Error::UploadGone(_)
            | Error::WrittenWrong { .. }
    );
    let wait = error.retry_after().unwrap_or(RESUMPTION_WAIT * 4_u32.pow(resumed.min(RESUMPTIONS)));
    let resumes = broken && error.verdict() == Verdict::Retry && resumed < RESUMPTIONS;
    (resumes && wait <= LONGEST_RESUMPTION_WAIT).then_some(wait)
}
