//! What a region's store can do. One trait, one module a kind behind it; what is only read needs less.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::Result;
use crate::domain::{Descriptor, ImageName};

/// Which kind of store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A directory of OCI image layouts.
    Dir,
}

impl StoreKind {
    /// The kind's name, as the scheme of its location has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
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

/// A piece of a blob on its way to a store.
#[derive(Debug, Clone)]
pub enum Chunk {
    /// The next bytes.
    Data(Bytes),
    /// There are no more, and what was sent had the digest it should have. A stream that ends without this is to be thrown
    /// away.
    End,
}

/// A blob as it is read, in pieces of at most [`super::CHUNK_BYTES`].
pub type BlobChunks = mpsc::Receiver<Result<Bytes>>;

/// An image that is being written, by one claim.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The image's name in the store.
    pub name: ImageName,
    /// The fence of the claim: what is not finished yet bears it, so that two claims never write to the same place.
    pub fence: u64,
}

/// Where an image can be read.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The root of an image; nothing if no whole image of that name is visible.
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>>;

    /// A manifest or an index, verified. Those over [`super::MAX_MANIFEST_BYTES`] are refused.
    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes>;

    /// A blob from its beginning. What arrives is not verified.
    async fn read_blob(&self, name: &ImageName, blob: &Descriptor) -> Result<BlobChunks>;
}

/// A region's store. Every operation may be repeated.
#[async_trait]
pub trait Store: Source {
    /// Which kind it is.
    fn kind(&self) -> StoreKind;

    /// The store's name for what a caller describes; refused with the reason if such an image can't be in it.
    fn locate(&self, spec: &ImageSpec) -> std::result::Result<ImageName, String>;

    /// Makes the place where an image will be written, and clears away what claims before this one left unfinished.
    async fn prepare(&self, stage: &Stage) -> Result<()>;

    /// Whether the blob is there already, verified by its digest, be it that another image of the store lent it.
    async fn has_blob(&self, stage: &Stage, blob: &Descriptor) -> Result<bool>;

    /// Refuses if the store has no room for as many bytes more.
    async fn reserve(&self, bytes: u64) -> Result<()>;

    /// Writes a blob. Returns when it is durable and its bytes, read again, have its digest.
    async fn write_blob(&self, stage: &Stage, blob: &Descriptor, chunks: mpsc::Receiver<Chunk>) -> Result<()>;

    /// Writes a manifest or an index, as [`Store::write_blob`] does.
    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()>;

    /// Makes the image visible, in one step, and durable. Everything under `root` must have been written.
    async fn publish(&self, stage: &Stage, root: &Descriptor) -> Result<()>;
}
