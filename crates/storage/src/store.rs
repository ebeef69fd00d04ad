//! The traits of stores and of read-only sources. Each kind of store implements them in a separate module.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{
    Descriptor, Digest, ForeignText, Image, ImageName, Leftover, NameContent, Published, StoreEntry, Verification,
    may_publish,
};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Activity, Attachment, Error, Journal, Listing, ManifestGraph, Neighbors, ReferrersIndex, Reservation, Result,
    Rollback, dir::Holders, mount_sources::MountSources, registry::WaitingUploads,
};

/// The kind of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A directory of OCI image layouts.
    Dir,
    /// A bucket of OCI image layouts.
    Object,
    /// A registry that speaks the OCI distribution API.
    Registry,
}

impl StoreKind {
    /// Returns the kind in lower case: `dir`, `object` or `registry`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Object => "object",
            Self::Registry => "registry",
        }
    }
}

/// A caller's description of an image to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSpec {
    /// A virtual machine image, by its name in the store.
    Vm(String),
    /// A container image, by its URL.
    Container(String),
}

/// A caller's image, resolved in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The name under which the store has the image.
    pub name: ImageName,
    /// The digest of the root, if the caller gave one. It takes precedence over the root that the name shows.
    pub digest: Option<Digest>,
}

/// A part of a blob that is sent to a store.
#[derive(Debug, Clone)]
pub enum Chunk {
    /// The next bytes, in order.
    Data(Bytes),
    /// The end of the blob. The digest of the sent bytes was correct, if they were sent from the beginning. A stream
    /// that ends without this chunk must be discarded.
    End,
}

/// The bytes of a blob, in chunks of at most [`super::CHUNK_BYTES`].
pub type BlobChunks = mpsc::Receiver<Result<Bytes>>;

/// The part of a blob that a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The whole blob, and how it was verified.
    Whole(Verification),
    /// The given number of leading bytes, in an upload that can be resumed. They are not verified.
    Part(u64),
    /// No part of the blob.
    Absent,
}

/// An image's place within a service, from which other stores of the same service can copy blobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The unique name of the service.
    pub service: String,
    /// The path within the service: a repository, or the prefix of a layout.
    pub path: String,
}

/// The destination of one claim's copy: an image being written.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The name under which the store shows the image once it is published.
    pub name: ImageName,
    /// The fence of the claim. Unfinished content is marked with the fence, so that two claims never write to the same
    /// content.
    pub fence: u64,
    /// Whether damage was found in the store's copy of the image. Existing content is then read again instead of
    /// trusted.
    pub suspect: bool,
    /// The places from which blobs can be mounted instead of sent, if the service is the same.
    pub mount_sources: MountSources,
    /// The record of the roots that this service has published under the name.
    pub published: Published,
    /// Whether content of other clients under the name may be replaced.
    pub overwrite: bool,
    /// The journal of the claim.
    pub journal: Arc<dyn Journal>,
    /// The progress of the copy, which long operations tick.
    pub activity: Activity,
    /// The space reserved for the copy, until the last clone is dropped.
    pub reservation: Reservation,
    /// The published content, and the content it replaced.
    pub rollback: Rollback,
    /// The time of the last successful check that the image may replace the name's other content, if there is any.
    pub seen_free: SeenAt,
    /// The other images of a directory that have the image's blobs.
    pub holders: Holders,
    /// Uploads that a registry began in response to mount requests.
    pub waiting: WaitingUploads,
}

/// The time of the last successful check. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SeenAt(Arc<Mutex<Option<Instant>>>);

impl SeenAt {
    fn cell(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a successful check.
    fn note(&self) {
        *self.cell() = Some(Instant::now());
    }

    /// Returns whether the last successful check was at most `time` ago.
    #[must_use]
    pub fn within(&self, time: Duration) -> bool {
        self.cell().is_some_and(|seen| seen.elapsed() <= time)
    }
}

impl Stage {
    /// Creates a stage without a history: no content was published under its name.
    #[must_use]
    pub fn new(name: ImageName, fence: u64, journal: Arc<dyn Journal>) -> Self {
        Self {
            name,
            fence,
            suspect: false,
            mount_sources: MountSources::default(),
            published: Published::default(),
            overwrite: false,
            journal,
            activity: Activity::default(),
            reservation: Reservation::default(),
            rollback: Rollback::default(),
            seen_free: SeenAt::default(),
            holders: Holders::default(),
            waiting: WaitingUploads::default(),
        }
    }

    /// Fails if the image must not replace the content that the name shows. `url` is the reference for pulls.
    pub(super) fn may_show(&self, url: &str, wanted: Digest, shown: &NameContent) -> Result<()> {
        if may_publish(wanted, shown, &self.published, self.overwrite) {
            if *shown != NameContent::Root(wanted) {
                self.seen_free.note();
            }
            return Ok(());
        }
        let there = match shown {
            NameContent::Root(there) => ForeignText::value(there),
            _ => "what can't be read as one image".into(),
        };
        Err(Error::Foreign { name: url.into(), there })
    }
}

/// Maximum size, in bytes, of existing blobs that are always read for verification. Reading such a blob costs little
/// more than checking for it. Images that otherwise differ often share a configuration of this size.
pub(super) const SMALL: u64 = 16 << 10;

/// The size in bytes above which a blob is requested from all mount sources of the image. A smaller blob is requested
/// from at most one mount source.
pub(super) const WORTH_MOUNTING: u64 = 128 << 10;

/// Converts the result of reading a name's root into the name's content. An unreadable root counts as content.
pub(super) fn shown(root: Result<Option<Descriptor>>) -> Result<NameContent> {
    match root {
        Ok(Some(root)) => Ok(NameContent::Root(root.digest)),
        Ok(None) => Ok(NameContent::Nothing),
        Err(Error::Malformed { .. }) => Ok(NameContent::Unreadable),
        Err(error) => Err(error),
    }
}

/// A store or a file from which images are read.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Returns the root of an image, or `None` if no complete image of that name is visible.
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>>;

    /// Returns the root of an image, with the digest `known` if the root has that digest. For a tag, a registry returns
    /// a digest by an algorithm of the registry's choice.
    async fn root_as(&self, name: &ImageName, _known: Digest) -> Result<Option<Descriptor>> {
        self.root(name).await
    }

    /// Returns the root with a digest, regardless of the name's content, or `None` if there is no such root.
    async fn root_of(&self, name: &ImageName, digest: Digest) -> Result<Option<Descriptor>> {
        Ok(self.root(name).await?.filter(|root| root.digest == digest))
    }

    /// Reads and verifies a manifest or an index. Fails above [`super::MAX_MANIFEST_BYTES`].
    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes>;

    /// Reads at most `most` bytes of a blob, starting at the byte offset `from`. The bytes are not verified.
    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks>;

    /// Lists the manifests beside the image, which may include signatures and lists of referrers. The list is no older
    /// than `since`.
    async fn neighbors(&self, _name: &ImageName, _since: Instant) -> Result<Neighbors> {
        Ok(Neighbors::default())
    }

    /// Returns the descriptor of a tag beside the image, or `None` if there is no such tag. Called for tags that
    /// [`Source::neighbors`] does not resolve.
    async fn tagged(&self, _name: &ImageName, _tag: &str) -> Result<Option<Descriptor>> {
        Ok(None)
    }

    /// Returns the manifests whose subject is `subject`, such as signatures and bills of materials (OCI distribution
    /// specification 1.1, "Listing Referrers"). Returns `None` if the store has no such lists; a fallback tag then
    /// replaces them ("Referrers Tag Schema").
    async fn referrers(&self, _name: &ImageName, _subject: Digest) -> Result<Option<Listing>> {
        Ok(None)
    }

    /// Returns whether the source is read over a network. The network may damage content, and servers may lag behind
    /// each other.
    fn is_remote(&self) -> bool {
        false
    }

    /// Returns whether reading several ranges of a blob concurrently may be faster than reading the blob sequentially.
    fn reads_ranges(&self) -> bool {
        false
    }
}

/// A region's store. Every operation may be repeated.
#[async_trait]
pub trait Store: Source {
    /// Returns the kind of the store.
    fn kind(&self) -> StoreKind;

    /// Resolves a caller's description of an image. Fails with the reason if the store can't have such an image.
    fn locate(&self, spec: &ImageSpec) -> std::result::Result<Located, String>;

    /// Returns the name of a registered image in this store.
    fn name_of(&self, image: &Image) -> ImageName;

    /// Returns the reference by which an image is pulled.
    fn url(&self, name: &ImageName) -> String;

    /// Returns the place of an image, for stores that can copy blobs from each other.
    fn place(&self, _name: &ImageName) -> Option<Place> {
        None
    }

    /// Checks that the store can be read and written, and leaves no content behind. Returns the bytes free for images,
    /// if they are known.
    async fn probe(&self) -> Result<Option<u64>>;

    /// Prepares the store for writing the image, and removes unfinished content of earlier claims.
    async fn prepare(&self, stage: &Stage) -> Result<()>;

    /// Returns how the whole image was verified, if the store shows the image and this service's record covers its
    /// parts. Returns `None` if every part must be checked. Fails if the name shows content that must not be replaced.
    async fn is_complete(&self, stage: &Stage, graph: &ManifestGraph) -> Result<Option<Verification>>;

    /// Returns how much of a blob the store has. May mount the blob from another image of the store.
    async fn stat_blob(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence>;

    /// Returns whether the store has a manifest or an index, verified by its digest.
    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool>;

    /// Reserves space for `bytes` more bytes, in place of the stage's previous reservation. Fails if the store has less
    /// free space, or if other copies have reserved it.
    async fn reserve(&self, _stage: &Stage, _bytes: u64) -> Result<()> {
        Ok(())
    }

    /// Writes a blob, starting at the byte offset `from`, which is 0 or the value of [`Presence::Part`]. Returns when
    /// the blob is durable and its digest is verified.
    async fn write_blob(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()>;

    /// Writes a manifest or an index, durably and verified as in [`Store::write_blob`].
    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()>;

    /// Returns whether [`Store::publish`] writes the root of the image, so that it need not be written before.
    fn publishes_root(&self) -> bool {
        false
    }

    /// Makes a written attachment findable, if publishing the image does not.
    async fn attach(&self, _stage: &Stage, _attachment: &Attachment) -> Result<()> {
        Ok(())
    }

    /// Makes a manifest's written referrers findable, if publishing the image does not.
    async fn list_referrers(&self, _stage: &Stage, _referrers: &ReferrersIndex) -> Result<()> {
        Ok(())
    }

    /// Makes the image visible, atomically and durably. Everything in `graph` must have been written, except for the
    /// parts that this operation writes.
    async fn publish(&self, stage: &Stage, graph: &ManifestGraph) -> Result<()>;

    /// Reverts [`Store::publish`] and restores the previous content, for a copy that was canceled before it was
    /// reported. Returns whether the publication was reverted. Content that another claim has changed since is kept. A
    /// store without this operation does nothing.
    async fn retract(&self, _stage: &Stage) -> Result<bool> {
        Ok(false)
    }

    /// Aborts uploads that this process began and abandoned, and that no journal records.
    async fn abort_unfinished(&self) {}

    /// Aborts an upload that no copy will resume. `session` is its record in the journal.
    async fn abort(&self, _session: &str) -> Result<()> {
        Ok(())
    }

    /// Returns the images with possible leftovers of copies that died, failed or were canceled. The result is empty for
    /// a store that shows only complete images.
    async fn find_leftovers(&self) -> Result<Vec<StoreEntry>> {
        Ok(Vec::new())
    }

    /// Removes a leftover. Returns whether it was removed. A leftover that has changed since it was found is kept.
    async fn clear_leftover(&self, _leftover: &Leftover) -> Result<bool> {
        Ok(false)
    }

    /// Removes the image that the stage's writer has just published. The caller ensures that nothing refers to it.
    /// Returns whether it was removed. Keeps an image that another writer has changed since. A store without this
    /// operation removes nothing.
    async fn discard(&self, _stage: &Stage) -> Result<bool> {
        Ok(false)
    }
}
