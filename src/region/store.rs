//! What a region's store can do. One trait, one module a kind behind it; what is only read needs less.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Activity, Attachment, Error, Exchange, Journal, Listing, Neighbors, ReferrersIndex, Reservation, Result, Tree,
    dir::Holders, lenders::Lenders, registry::WaitingUploads,
};
use crate::domain::{
    Descriptor, Digest, ForeignText, Image, ImageName, Leftover, NameContent, Published, StoreEntry, Verification,
    may_publish,
};

/// Which kind of store it is.
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
    /// The kind's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Object => "object",
            Self::Registry => "registry",
        }
    }
}

/// Where an image that is to be registered is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSpec {
    /// A virtual machine's image, by the name that the store has for it.
    Vm(String),
    /// A container image, by its URL.
    Container(String),
}

/// An image that a caller describes, as a store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Its name there.
    pub name: ImageName,
    /// The digest of its root, if the caller has said which is meant, whatever the name shows.
    pub digest: Option<Digest>,
}

/// A piece of a blob on its way to a store.
#[derive(Debug, Clone)]
pub enum Chunk {
    /// The next bytes.
    Data(Bytes),
    /// There are no more, and what was sent had the digest it should have, if it was sent from its beginning. A stream that
    /// ends without this is to be thrown away.
    End,
}

/// A blob as it is read, in pieces of at most [`super::CHUNK_BYTES`].
pub type BlobChunks = mpsc::Receiver<Result<Bytes>>;

/// What a store has of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// All of it, and how that is known.
    Whole(Verification),
    /// As many of its first bytes, in an upload that can be gone on with from there. Not verified.
    Part(u64),
    /// Nothing.
    Absent,
}

/// Where an image lies within a service, so that another store of the same service can take blobs from there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The service: nothing that another one could be called.
    pub service: String,
    /// Where in it: a repository, or the prefix of a layout.
    pub path: String,
}

/// An image that is being written, by one claim.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The image's name in the store.
    pub name: ImageName,
    /// The fence of the claim: what is not finished yet bears it, so that two claims never write to the same place.
    pub fence: u64,
    /// Whether something of the image was found damaged here: then what is there is not believed but read again.
    pub suspect: bool,
    /// Where blobs may be taken from without carrying them, if they are of the same service.
    pub lenders: Lenders,
    /// What this service remembers to have published by the image's name.
    pub published: Published,
    /// Whether what others have put in the image's place may be replaced.
    pub overwrite: bool,
    /// What the claim remembers beyond its worker, and whether it is still good.
    pub journal: Arc<dyn Journal>,
    /// How far the copy has come: long operations count their steps here.
    pub activity: Activity,
    /// The space that the copy has reserved, until the last clone is dropped.
    pub reservation: Reservation,
    /// What the copy has made visible, and what was visible before.
    pub exchange: Exchange,
    /// When it was last seen that the image may be shown by its name, which shows something else, or nothing.
    pub seen_free: SeenAt,
    /// Which other images of a directory have its blobs.
    pub holders: Holders,
    /// Uploads that a registry has begun as it was asked for their blobs.
    pub waiting: WaitingUploads,
}

/// When something was last seen. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SeenAt(Arc<Mutex<Option<Instant>>>);

impl SeenAt {
    fn cell(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was seen just now.
    fn note(&self) {
        *self.cell() = Some(Instant::now());
    }

    /// Whether it was seen within `time`.
    #[must_use]
    pub fn within(&self, time: Duration) -> bool {
        self.cell().is_some_and(|seen| seen.elapsed() <= time)
    }
}

impl Stage {
    /// A stage of which nothing else is known: nothing was published by its name.
    #[must_use]
    pub fn new(name: ImageName, fence: u64, journal: Arc<dyn Journal>) -> Self {
        Self {
            name,
            fence,
            suspect: false,
            lenders: Lenders::default(),
            published: Published::default(),
            overwrite: false,
            journal,
            activity: Activity::default(),
            reservation: Reservation::default(),
            exchange: Exchange::default(),
            seen_free: SeenAt::default(),
            holders: Holders::default(),
            waiting: WaitingUploads::default(),
        }
    }

    /// Refuses to make the image visible in the place of what others have put there. `url` is what people pull it by.
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

/// Blobs of at most this size, in bytes, are always read where a store has them: that costs little more than looking for them, and
/// images that differ mostly share their configuration.
pub(super) const SMALL: u64 = 16 << 10;

/// Blobs above this size, in bytes, are looked for at all of the image's lenders: one that is smaller is sent as soon as it is found.
pub(super) const WORTH_LENDING: u64 = 128 << 10;

/// What a store shows by a name, of what its root is there or can't be read.
pub(super) fn shown(root: Result<Option<Descriptor>>) -> Result<NameContent> {
    match root {
        Ok(Some(root)) => Ok(NameContent::Root(root.digest)),
        Ok(None) => Ok(NameContent::Nothing),
        Err(Error::Malformed { .. }) => Ok(NameContent::Unreadable),
        Err(error) => Err(error),
    }
}

/// Where an image can be read.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The root of an image; nothing if no whole image of that name is visible.
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>>;

    /// The root of an image, by the digest `known` if it has that one: a registry that is asked for a tag answers with a digest by an
    /// algorithm of its own choice.
    async fn root_as(&self, name: &ImageName, _known: Digest) -> Result<Option<Descriptor>> {
        self.root(name).await
    }

    /// The root of an image that is known by its digest, whatever its name shows; nothing if it is not there.
    async fn root_of(&self, name: &ImageName, digest: Digest) -> Result<Option<Descriptor>> {
        Ok(self.root(name).await?.filter(|root| root.digest == digest))
    }

    /// A manifest or an index, verified. Those over [`super::MAX_MANIFEST_BYTES`] are refused.
    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes>;

    /// A blob from the byte `from` on; `most` bytes of it at most, if that is given. What arrives is not verified.
    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks>;

    /// What is listed beside the image, as it was no earlier than `since`: signatures and lists of referrers may be among it.
    async fn neighbors(&self, _name: &ImageName, _since: Instant) -> Result<Neighbors> {
        Ok(Neighbors::default())
    }

    /// What a tag beside the image's stands for; nothing if there is none. Asked where [`Source::neighbors`] leaves that open.
    async fn tagged(&self, _name: &ImageName, _tag: &str) -> Result<Option<Descriptor>> {
        Ok(None)
    }

    /// Manifests whose subject is this one: signatures, bills of materials (OCI distribution specification 1.1, "Listing
    /// Referrers"). Nothing where the store has no such lists: then a tag stands in for them ("Referrers Tag Schema").
    async fn referrers(&self, _name: &ImageName, _subject: Digest) -> Result<Option<Listing>> {
        Ok(None)
    }

    /// Whether it is read over a network, which may damage what it carries, from servers that may not know yet what was written to others.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether reading several ranges of a blob at once may be faster than reading it in one go.
    fn reads_ranges(&self) -> bool {
        false
    }
}

/// A region's store. Every operation may be repeated.
#[async_trait]
pub trait Store: Source {
    /// Which kind it is.
    fn kind(&self) -> StoreKind;

    /// What a caller describes, as the store knows it; refused with the reason if such an image can't be in it.
    fn locate(&self, spec: &ImageSpec) -> std::result::Result<Located, String>;

    /// The store's name for a registered image that is carried to it.
    fn name_of(&self, image: &Image) -> ImageName;

    /// What people pull an image by.
    fn url(&self, name: &ImageName) -> String;

    /// Where an image lies, for stores that can take blobs from each other.
    fn place(&self, _name: &ImageName) -> Option<Place> {
        None
    }

    /// Tries whether the store can be read and written, and leaves nothing behind. Returns how many bytes are free for images, where that
    /// can be told.
    async fn probe(&self) -> Result<Option<u64>>;

    /// Makes the place where an image will be written, and clears away what claims before this one left unfinished.
    async fn prepare(&self, stage: &Stage) -> Result<()>;

    /// How it is known that the whole image is there and visible already, if the store shows it and this service's own record vouches
    /// for what is below; nothing if every part has to be looked for. Fails if its name shows what may not be replaced.
    async fn is_complete(&self, stage: &Stage, tree: &Tree) -> Result<Option<Verification>>;

    /// What there is of a blob, be it that another image of the store lends it.
    async fn look(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence>;

    /// Whether a manifest or an index is there already, verified by its digest.
    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool>;

    /// Reserves room for as many bytes more in the stage's reservation, instead of what it had reserved before. Refuses if the store
    /// has less, or if other copies have reserved it.
    async fn reserve(&self, _stage: &Stage, _bytes: u64) -> Result<()> {
        Ok(())
    }

    /// Writes a blob, whose bytes come from `from` on: 0, or what [`Presence::Part`] said. Returns when it is durable and has
    /// been verified by its digest.
    async fn write_blob(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()>;

    /// Writes a manifest or an index, as [`Store::write_blob`] does.
    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()>;

    /// Whether [`Store::publish`] writes the root of the image by itself, so that it need not be written before.
    fn publishes_root(&self) -> bool {
        false
    }

    /// Makes something findable that is attached to the image, once it was written, where that is not done with the image itself.
    async fn attach(&self, _stage: &Stage, _attachment: &Attachment) -> Result<()> {
        Ok(())
    }

    /// Makes what refers to a manifest findable, once it was written, where that is not done with the image itself.
    async fn list_referrers(&self, _stage: &Stage, _referrers: &ReferrersIndex) -> Result<()> {
        Ok(())
    }

    /// Makes the image visible, in one step, and durable. Everything in `tree` must have been written, but for what it writes itself.
    async fn publish(&self, stage: &Stage, tree: &Tree) -> Result<()>;

    /// Takes back what [`Store::publish`] has made visible for the stage, and shows what was visible before: its copy was canceled
    /// before it was reported. Returns whether it did. What another claim has touched since is left alone, and a store that
    /// can't take back does nothing.
    async fn retract(&self, _stage: &Stage) -> Result<bool> {
        Ok(false)
    }

    /// Gives up what this process has begun and dropped unfinished, and no journal knows of.
    async fn tidy(&self) {}

    /// Gives up an upload that nobody will go on with: `session` is what the journal says about it.
    async fn abort(&self, _session: &str) -> Result<()> {
        Ok(())
    }

    /// The images of which something may be left over: what copies that died, failed or were canceled left behind. None in a
    /// store that shows only what is whole.
    async fn find_leftovers(&self) -> Result<Vec<StoreEntry>> {
        Ok(Vec::new())
    }

    /// Removes something that is left over. Returns whether it was still so: what has changed since is kept.
    async fn clear_leftover(&self, _leftover: &Leftover) -> Result<bool> {
        Ok(false)
    }

    /// Removes the image that a stage's writer has just published, and that nothing refers to. Returns whether it did: an image
    /// that another writer has touched since is kept, and so is one in a store that has no such operation.
    async fn discard(&self, _stage: &Stage) -> Result<bool> {
        Ok(false)
    }
}
