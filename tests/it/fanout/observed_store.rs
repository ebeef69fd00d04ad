//! A directory store that counts reads and writes, and that can block both until a gate opens.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use appferry::{
    domain::{Descriptor, Image, ImageName, Verification},
    storage::{
        BlobChunks, Chunk, DirStore, ImageSpec, Located, ManifestGraph, Presence, Result, Source, Stage, Store,
        StoreKind,
    },
};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

/// A directory store that counts the blob bytes read from it. Its writers wait until a gate opens.
#[derive(Debug, Clone)]
pub struct ObservedStore {
    pub store: DirStore,
    pub read: Arc<AtomicU64>,
    pub open: watch::Receiver<bool>,
    pub writing: Arc<Writing>,
    /// Whether `prepare` panics.
    pub panics: Arc<AtomicBool>,
    /// The number of blob bytes after which reads wait until `source_open` is true.
    pub held_after: Arc<AtomicU64>,
    pub source_open: watch::Receiver<bool>,
}

/// The current, maximum and total number of blob writes.
#[derive(Debug, Default)]
pub struct Writing {
    pub begun: AtomicU64,
    pub now: AtomicU64,
    pub most: AtomicU64,
}

/// Counts a write as current until dropped, because a write may be canceled.
struct Writer<'a>(&'a Writing);

impl<'a> Writer<'a> {
    fn new(writing: &'a Writing) -> Self {
        writing.begun.fetch_add(1, Ordering::Relaxed);
        let now = writing.now.fetch_add(1, Ordering::Relaxed) + 1;
        writing.most.fetch_max(now, Ordering::Relaxed);
        Self(writing)
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl Source for ObservedStore {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        self.store.root(name).await
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        self.store.read_manifest(name, manifest).await
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        if self.read.load(Ordering::Relaxed) >= self.held_after.load(Ordering::Relaxed) {
            self.source_open.clone().wait_for(|open| *open).await.expect("the test goes on");
        }
        let mut chunks = self.store.read_blob(name, blob, from, most).await?;
        let (counted, receiver) = mpsc::channel(1);
        let read = Arc::clone(&self.read);
        tokio::spawn(async move {
            while let Some(chunk) = chunks.recv().await {
                read.fetch_add(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64), Ordering::Relaxed);
                if counted.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

#[tonic::async_trait]
impl Store for ObservedStore {
    fn kind(&self) -> StoreKind {
        self.store.kind()
    }

    async fn probe(&self) -> Result<Option<u64>> {
        self.store.probe().await
    }

    fn locate(&self, spec: &ImageSpec) -> std::result::Result<Located, String> {
        self.store.locate(spec)
    }

    fn name_of(&self, image: &Image) -> ImageName {
        self.store.name_of(image)
    }

    fn url(&self, name: &ImageName) -> String {
        self.store.url(name)
    }

    async fn prepare(&self, stage: &Stage) -> Result<()> {
        assert!(!self.panics.load(Ordering::Relaxed), "the store panics on request");
        self.store.prepare(stage).await
    }

    async fn is_complete(&self, stage: &Stage, tree: &ManifestGraph) -> Result<Option<Verification>> {
        self.store.is_complete(stage, tree).await
    }

    async fn stat_blob(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
        self.store.stat_blob(stage, blob).await
    }

    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool> {
        self.store.has_manifest(stage, manifest).await
    }

    async fn reserve(&self, stage: &Stage, bytes: u64) -> Result<()> {
        self.store.reserve(stage, bytes).await
    }

    async fn write_blob(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()> {
        let _counted = Writer::new(&self.writing);
        self.open.clone().wait_for(|open| *open).await.expect("the test goes on");
        self.store.write_blob(stage, blob, from, chunks).await
    }

    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()> {
        self.store.write_manifest(stage, manifest, content).await
    }

    async fn publish(&self, stage: &Stage, tree: &ManifestGraph) -> Result<()> {
        self.store.publish(stage, tree).await
    }
}
