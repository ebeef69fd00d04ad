//! Store in a directory of OCI image layouts: one layout per image at `<directory>/<image>/`, so that no index file is
//! shared.
//!
//! Every path is opened beneath the directory, by capability: neither a name nor a symbolic link in a layout leads out
//! of it. The directory itself is never created, because a missing directory may be a disk that is not mounted.

mod blob;
mod fence;
mod holders;
mod layout;
mod leftovers;
mod operations;
mod partial;
mod publish;
mod signatures;
mod space;
#[cfg(test)]
mod tests;
mod write;

use std::{
    io::{self, Read as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cap_std::{
    ambient_authority,
    fs::{Dir, File},
};
use domain::{Descriptor, Digest, Image, ImageName, Leftover, StoreEntry, Verification};
use operations::{Operations, Progress, STALL};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};

pub use holders::Holders;

use super::{
    Activity, BlobChunks, Chunk, Error, ImageSpec, Located, MAX_MANIFEST_BYTES, ManifestGraph, Neighbors, Presence,
    Result, Source, Stage, Store, StoreKind, store::shown,
};

/// Number of pieces of a blob that may be read ahead of the receiver.
const READ_AHEAD: usize = 4;

/// A store in a directory of OCI image layouts.
#[derive(Debug, Clone)]
pub struct DirStore(Arc<Settings>);

#[derive(Debug, Clone)]
struct Settings {
    path: PathBuf,
    /// Selects the image of a layout that has several.
    name: Option<String>,
    keep_free: u64,
    operations: Arc<Operations>,
}

impl DirStore {
    /// Creates the store in a directory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let operations = Arc::new(Operations::new(path.display().to_string(), STALL));
        Self(Arc::new(Settings { path, name: None, keep_free: 0, operations }))
    }

    fn with(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::clone(&self.0);
        change(&mut settings);
        Self(Arc::new(settings))
    }

    /// Returns the same store, which reads from each layout the manifest that is listed under `name`.
    #[must_use]
    pub fn with_name(&self, name: Option<String>) -> Self {
        self.with(|settings| settings.name = name)
    }

    /// Returns the same store, which rejects an image that would leave less than `bytes` free.
    #[must_use]
    pub fn keeping_free(&self, bytes: u64) -> Self {
        self.with(|settings| settings.keep_free = bytes)
    }

    /// Returns the same store, whose operations fail after `stall` without progress.
    #[must_use]
    pub fn stalling_after(&self, stall: Duration) -> Self {
        let operations = Arc::new(Operations::new(self.0.path.display().to_string(), stall));
        self.with(|settings| settings.operations = operations)
    }

    /// Opens the directory. Every operation opens it again, because it may be mounted, unmounted or replaced at any
    /// time.
    fn dir(&self) -> Result<Dir> {
        let path = || self.0.path.display().to_string();
        Dir::open_ambient_dir(&self.0.path, ambient_authority()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Vanished(path().into()),
            _ => Error::io("opening", path())(error),
        })
    }

    /// Fails if the publication would replace an index that another program wrote.
    async fn may_show(&self, stage: &Stage, graph: &ManifestGraph) -> Result<()> {
        let Some((root, _)) = graph.manifests.last() else { return Ok(()) };
        let there = shown(self.root(&stage.name).await)?;
        stage.may_show(&self.shown_as(&stage.name), root.digest, &there)
    }

    /// Returns the path of an image for messages.
    fn shown_as(&self, name: &ImageName) -> String {
        self.0.path.join(&name.0).display().to_string()
    }

    /// Runs an operation of a copy on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        stage: &Stage,
        act: impl FnOnce(&Dir, &Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        self.0.operations.run(&stage.activity, move |progress| act(&store.dir()?, progress)).await
    }

    /// Runs an operation that belongs to no copy on a blocking thread.
    async fn reading<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Self, &Dir) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        self.0.operations.run(&Activity::default(), move |_| act(&store, &store.dir()?)).await
    }
}

/// The journal's record of a large blob whose writing has begun.
#[derive(Serialize, Deserialize)]
struct Begun {
    name: String,
    digest: String,
}

#[async_trait]
impl Source for DirStore {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        let name = name.clone();
        self.reading(move |store, dir| layout::root(dir, &name, store.0.name.as_deref())).await
    }

    async fn root_of(&self, name: &ImageName, digest: Digest) -> Result<Option<Descriptor>> {
        let name = name.clone();
        let index = self.reading(move |_, dir| layout::index(dir, &name)).await?;
        Ok(index.map(|index| index.listed(digest)).transpose()?.flatten())
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        let (name, manifest) = (name.clone(), manifest.clone());
        if manifest.size > MAX_MANIFEST_BYTES {
            let reason = format!("it has {} bytes, the most is {MAX_MANIFEST_BYTES}", manifest.size);
            return Err(Error::malformed(format!("the manifest {} of {name}", manifest.digest), reason));
        }
        self.reading(move |_, dir| blob::read_whole(dir, &name, &manifest)).await
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        let (name, blob) = (name.clone(), blob.clone());
        let file = self.reading(move |_, dir| blob::open(dir, &name, &blob, from)).await?;
        let (chunks, received) = mpsc::channel(READ_AHEAD);
        // The task ends with the file, or when the receiver is dropped.
        drop(tokio::spawn(read_chunks(Arc::clone(&self.0.operations), file.take(most.unwrap_or(u64::MAX)), chunks)));
        Ok(received)
    }

    async fn neighbors(&self, name: &ImageName, _since: Instant) -> Result<Neighbors> {
        let own = name.clone();
        match self.reading(move |_, dir| layout::index(dir, &own)).await? {
            Some(index) => super::layout::neighbors(self, name, index).await,
            None => Ok(Neighbors::default()),
        }
    }
}

#[async_trait]
impl Store for DirStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Dir
    }

    fn locate(&self, spec: &ImageSpec) -> std::result::Result<Located, String> {
        super::layout::locate(spec)
    }

    fn name_of(&self, image: &Image) -> ImageName {
        ImageName(image.id.to_string())
    }

    fn url(&self, name: &ImageName) -> String {
        format!("oci:{name}")
    }

    async fn probe(&self) -> Result<Option<u64>> {
        self.reading(|store, _| {
            store.try_to_write()?;
            Ok(Some(store.available()?.saturating_sub(store.0.keep_free)))
        })
        .await
    }

    async fn prepare(&self, stage: &Stage) -> Result<()> {
        publish::prepare(self, stage).await
    }

    /// Always returns `None`, because any program may have changed the directory, so each blob is checked. Searches the
    /// other images for shared blobs.
    async fn is_complete(&self, stage: &Stage, graph: &ManifestGraph) -> Result<Option<Verification>> {
        self.may_show(stage, graph).await?;
        let (own, graph) = (stage.clone(), graph.clone());
        self.blocking(stage, move |dir, progress| own.holders.find(dir, &own.name, &graph, progress))
            .await
            .map(|()| None)
    }

    async fn stat_blob(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
        let (own, blob) = (stage.clone(), blob.clone());
        self.blocking(stage, move |dir, progress| blob::stat(dir, &own, &blob, progress)).await
    }

    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool> {
        Ok(matches!(self.stat_blob(stage, manifest).await?, Presence::Whole(_)))
    }

    async fn reserve(&self, stage: &Stage, bytes: u64) -> Result<()> {
        let reservation = stage.reservation.clone();
        self.reading(move |store, _| {
            let free = store.available()?.saturating_sub(store.0.keep_free);
            reservation.replace(&store.ledger()?, bytes, free)
        })
        .await
    }

    async fn write_blob(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()> {
        let resumable = partial::is_resumable(blob);
        if resumable {
            let begun = Begun { name: stage.name.0.clone(), digest: blob.digest.to_string() };
            let session = serde_json::to_string(&begun).map_err(|error| Error::malformed("a blob", error))?;
            stage.journal.note(blob.digest, &session).await?;
        }
        write::write(self, stage, blob, from, chunks).await?;
        if resumable { stage.journal.forget(blob.digest).await } else { Ok(()) }
    }

    async fn abort(&self, session: &str) -> Result<()> {
        let Ok(Begun { name, digest }) = serde_json::from_str(session) else { return Ok(()) };
        let Ok(digest) = digest.parse() else { return Ok(()) };
        self.reading(move |_, dir| blob::remove_partials(dir, &ImageName(name), digest)).await
    }

    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()> {
        let (sender, chunks) = mpsc::channel(2);
        // The channel has room for both chunks.
        let _ = sender.try_send(Chunk::Data(content));
        let _ = sender.try_send(Chunk::End);
        drop(sender);
        self.write_blob(stage, manifest, 0, chunks).await
    }

    async fn publish(&self, stage: &Stage, graph: &ManifestGraph) -> Result<()> {
        publish::publish(self, stage, graph).await
    }

    async fn retract(&self, stage: &Stage) -> Result<bool> {
        publish::retract(self, stage).await
    }

    async fn find_leftovers(&self) -> Result<Vec<StoreEntry>> {
        let store = self.clone();
        let find = move |progress: &Progress| leftovers::find(&store.dir()?, progress);
        self.0.operations.run(&Activity::default(), find).await
    }

    async fn clear_leftover(&self, leftover: &Leftover) -> Result<bool> {
        let (store, leftover) = (self.clone(), leftover.clone());
        let clear = move |progress: &Progress| leftovers::clear(&store.dir()?, &leftover, progress);
        self.0.operations.run(&Activity::default(), clear).await
    }

    async fn discard(&self, stage: &Stage) -> Result<bool> {
        let own = stage.clone();
        self.blocking(stage, move |dir, progress| leftovers::discard(dir, &own.name, own.fence, progress)).await
    }
}

/// Reads an open blob and sends it in pieces, until its end, or until the receiver is dropped. Holds a thread only
/// while it reads a piece.
async fn read_chunks(operations: Arc<Operations>, mut file: io::Take<File>, chunks: mpsc::Sender<Result<Bytes>>) {
    loop {
        // Reserved before the piece is read, so that a slow receiver buffers no more pieces than its channel holds.
        let Ok(place) = chunks.reserve().await else { return };
        let read = move |_: &Progress| {
            let chunk = blob::read_chunk(&mut file)?;
            Ok((file, chunk))
        };
        match operations.run(&Activity::default(), read).await {
            Ok((_, None)) => return,
            Ok((rest, Some(chunk))) => {
                file = rest;
                place.send(Ok(chunk));
            }
            Err(error) => return place.send(Err(error)),
        }
    }
}
