//! The traits of stores and of read-only sources. Each kind of store implements them in a module of its own.

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
    /// The kind in lower case: `dir`, `object` or `registry`.
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
    /// that ends without this must be discarded.
    End,
}

/// The bytes of a blob, in chunks of at most [`super::CHUNK_BYTES`].
pub type BlobChunks = mpsc::Receiver<Result<Bytes>>;

/// The part of a blob that a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The whole blob, and how it was verified.
    Whole(Verification),
    /// The first bytes, of this number, in an upload that can be resumed. Not verified.
    Part(u64),
    /// No part.
    Absent,
}

/// An image's place within a service, from which other stores of the same service can copy blobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The service, by a name that no other service has.
    pub service: String,
    /// The path within it: a repository, or the prefix of a layout.
    pub path: String,
}

/// The destination of one claim's copy: an image being written.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The name under which the store shows the image once it is published.
    pub name: ImageName,
    /// The fence of the claim. Unfinished content is marked with it, so that two claims never write to the same place.
    pub fence: u64,
    /// Whether damage was found in the image here. Existing content is then read again instead of trusted.
    pub suspect: bool,
    /// The places from which blobs can be mounted instead of sent, if the service is the same.
    pub mount_sources: MountSources,
    /// The record of the roots that this service has published under the name.
    pub published: Published,
    /// Whether other clients' content in the image's place may be replaced.
    pub overwrite: bool,
    /// The journal of the claim.
    pub journal: Arc<dyn Journal>,
    /// The progress of the copy, which long operations tick.
    pub activity: Activity,
    /// The space reserved for the copy, until the last clone is dropped.
    pub reservation: Reservation,
    /// The published content, and the content it replaced.
    pub rollback: Rollback,
    /// The time of the last check that the name may be made to show the image, although it shows other content or none.
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

    /// Whether the last successful check was at most `time` ago.
    #[must_use]
    pub fn within(&self, time: Duration) -> bool {
        self.cell().is_some_and(|seen| seen.elapsed() <= time)
    }
}

impl Stage {
    /// A stage without a history: no content was published under its name.
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

/// The size in bytes up to which blobs are always read where a store has them. Reading costs little more than a check
/// there, and otherwise different images often share their configuration.
pub(super) const SMALL: u64 = 16 << 10;

/// The size in bytes above which a blob is requested from all mount sources of the image. A smaller one is requested
/// from one at most.
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

/// A place from which images are read.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The root of an image; `None` if no complete image of that name is visible.
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>>;

    /// The root of an image, expressed by the digest `known` if it has that one. For a tag, a registry returns a digest
    /// by an algorithm of its choice.
    async fn root_as(&self, name: &ImageName, _known: Digest) -> Result<Option<Descriptor>> {
        self.root(name).await
    }

    /// The root with a digest, regardless of the name's content; `None` if it is missing.
    async fn root_of(&self, name: &ImageName, digest: Digest) -> Result<Option<Descriptor>> {
        Ok(self.root(name).await?.filter(|root| root.digest == digest))
    }

    /// Reads and verifies a manifest or an index. Fails above [`super::MAX_MANIFEST_BYTES`].
    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes>;

    /// Reads a blob from the byte `from` on, at most `most` bytes of it. The bytes are not verified.
    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks>;

    /// Lists the manifests beside the image, no staler than `since`. Signatures and lists of referrers may be among
    /// them.
    async fn neighbors(&self, _name: &ImageName, _since: Instant) -> Result<Neighbors> {
        Ok(Neighbors::default())
    }

    /// The descriptor of a tag beside the image; `None` if there is no such tag. Called for tags that
    /// [`Source::neighbors`] does not resolve.
    async fn tagged(&self, _name: &ImageName, _tag: &str) -> Result<Option<Descriptor>> {
        Ok(None)
    }

    /// The manifests whose subject is the given one: signatures, bills of materials (OCI distribution specification
    /// 1.1, "Listing Referrers"). `None` if the store has no such lists; a fallback tag replaces them ("Referrers Tag
    /// Schema").
    async fn referrers(&self, _name: &ImageName, _subject: Digest) -> Result<Option<Listing>> {
        Ok(None)
    }

    /// Whether the source is read over a network. The network may damage content, and servers may lag behind each
    /// other.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether reading several ranges of a blob concurrently may be faster than reading it sequentially.
    fn reads_ranges(&self) -> bool {
        false
    }
}

/// A region's store. Every operation may be repeated.
#[async_trait]
pub trait Store: Source {
    /// The kind of the store.
    fn kind(&self) -> StoreKind;

    /// Resolves a caller's description of an image. Fails with the reason if the store can't have such an image.
    fn locate(&self, spec: &ImageSpec) -> std::result::Result<Located, String>;

    /// The name in this store for a registered image.
    fn name_of(&self, image: &Image) -> ImageName;

    /// The reference by which an image is pulled.
    fn url(&self, name: &ImageName) -> String;

    /// The place of an image, for stores that can copy blobs from each other.
    fn place(&self, _name: &ImageName) -> Option<Place> {
        None
    }

    /// Checks that the store can be read and written, and leaves no content behind. Returns the bytes free for images,
    /// if they are known.
    async fn probe(&self) -> Result<Option<u64>>;

    /// Creates the place where the image is written, and removes unfinished content of earlier claims.
    async fn prepare(&self, stage: &Stage) -> Result<()>;

    /// How the whole image was verified, if the store shows it and this service's record covers its parts; `None` if
    /// every part must be checked. Fails if the name shows content that must not be replaced.
    async fn is_complete(&self, stage: &Stage, graph: &ManifestGraph) -> Result<Option<Verification>>;

    /// Checks how much of a blob is there. May mount it from another image of the store.
    async fn stat_blob(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence>;

    /// Whether the store has a manifest or an index, verified by its digest.
    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool>;

    /// Reserves space for `bytes` more, in place of the stage's previous reservation. Fails if the store has less or
    /// other copies have reserved it.
    async fn reserve(&self, _stage: &Stage, _bytes: u64) -> Result<()> {
        Ok(())
    }

    /// Writes a blob from the byte `from` on, which is 0 or the value of [`Presence::Part`]. Returns when the blob is
    /// durable and its digest is verified.
    async fn write_blob(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()>;

    /// Writes a manifest or an index, durably and verified as in [`Store::write_blob`].
    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()>;

    /// Whether [`Store::publish`] writes the root of the image, so that it need not be written before.
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
    /// reported. Returns whether it did: content that another claim changed since is kept, and a store without this
    /// operation does nothing.
    async fn retract(&self, _stage: &Stage) -> Result<bool> {
        Ok(false)
    }

    /// Aborts uploads that this process began and abandoned, and that no journal has.
    async fn abort_unfinished(&self) {}

    /// Aborts an upload that no copy will resume. `session` is its record in the journal.
    async fn abort(&self, _session: &str) -> Result<()> {
        Ok(())
    }

    /// The images with possible leftovers of copies that died, failed or were canceled. Empty for a store that shows
    /// only complete images.
    async fn find_leftovers(&self) -> Result<Vec<StoreEntry>> {
        Ok(Vec::new())
    }

    /// Removes a leftover. Returns whether it did: a leftover that has changed since is kept.
    async fn clear_leftover(&self, _leftover: &Leftover) -> Result<bool> {
        Ok(false)
    }

    /// Removes the image that the stage's writer has just published and that has no references. Returns whether it did:
    /// an image that another writer has touched since is kept, as it is in a store without this operation.
    async fn discard(&self, _stage: &Stage) -> Result<bool> {
        Ok(false)
    }
}
