//! A directory of OCI image layouts: `<directory>/<image>/`, one layout an image, so that no index file is shared.
//!
//! Every path is opened beneath the directory, by capability: neither a name nor a symbolic link in a layout leads out of it.
//! The directory itself is never created: one that is not there may be a disk that is not mounted.

mod blob;
mod layout;

use std::{io::Write as _, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cap_std::{ambient_authority, fs::Dir};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    BlobChunks, Chunk, Error, ImageSpec, MAX_MANIFEST_BYTES, Presence, Result, Source, Stage, Store, StoreKind, Tree,
    store::shown, tree::Entry,
};
use crate::domain::{Descriptor, Digest, Image, ImageName, Verification};

/// How many pieces of a blob may have been read and not yet passed on.
const READ_AHEAD: usize = 4;

/// A directory of OCI image layouts.
#[derive(Debug, Clone)]
pub struct DirStore(Arc<Settings>);

#[derive(Debug)]
struct Settings {
    path: PathBuf,
    tag: Option<String>,
    keep_free: u64,
}

impl DirStore {
    /// The store in a directory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Settings { path: path.into(), tag: None, keep_free: 0 }))
    }

    /// The same store, in which an image is what its layout has under `tag`.
    #[must_use]
    pub fn with_tag(&self, tag: Option<String>) -> Self {
        Self(Arc::new(Settings { path: self.0.path.clone(), tag, keep_free: self.0.keep_free }))
    }

    /// The same store, which refuses an image that would leave fewer bytes free.
    #[must_use]
    pub fn keeping_free(&self, bytes: u64) -> Self {
        Self(Arc::new(Settings { path: self.0.path.clone(), tag: self.0.tag.clone(), keep_free: bytes }))
    }

    /// Opens the directory anew: it may have been mounted, unmounted or replaced since.
    fn dir(&self) -> Result<Dir> {
        Dir::open_ambient_dir(&self.0.path, ambient_authority())
            .map_err(|_| Error::Vanished(self.0.path.display().to_string()))
    }

    /// Bytes that are free.
    fn available(&self) -> Result<u64> {
        let path = self.0.path.display().to_string();
        let fs = rustix::fs::fstatvfs(&self.dir()?)
            .map_err(|error| Error::io("asking for the free space of", path)(error.into()))?;
        Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    /// Writes a file that is no image's, and removes it.
    fn try_to_write(&self) -> Result<()> {
        let (dir, name) = (self.dir()?, format!(".appferry-probe-{}", uuid::Uuid::now_v7().simple()));
        let path = self.0.path.join(&name).display().to_string();
        let mut file = dir.create(&name).map_err(Error::io("creating", path.as_str()))?;
        let written = file.write_all(b"appferry").and_then(|()| file.sync_all());
        let removed = dir.remove_file(&name);
        written.map_err(Error::io("writing", path.as_str()))?;
        removed.map_err(Error::io("removing", path.as_str()))
    }

    /// Refuses to replace an index that others have put there.
    async fn may_show(&self, stage: &Stage, tree: &Tree) -> Result<()> {
        let Some((root, _)) = tree.manifests.last() else { return Ok(()) };
        let there = shown(self.root(&stage.name).await)?;
        stage.may_show(&self.0.path.join(&stage.name.0).display().to_string(), root.digest, &there)
    }

    /// Does something on a thread that may block.
    async fn blocking<T: Send + 'static>(&self, act: impl FnOnce(&Self) -> Result<T> + Send + 'static) -> Result<T> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || act(&store)).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::Interrupted),
        }
    }
}

/// A large blob that has been begun, as the journal has it.
#[derive(Serialize, Deserialize)]
struct Begun {
    name: String,
    digest: String,
}

#[async_trait]
impl Source for DirStore {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        let name = name.clone();
        self.blocking(move |store| layout::root(&store.dir()?, &name, store.0.tag.as_deref())).await
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        let (name, manifest) = (name.clone(), manifest.clone());
        if manifest.size > MAX_MANIFEST_BYTES {
            let reason = format!("it has {} bytes, the most is {MAX_MANIFEST_BYTES}", manifest.size);
            return Err(Error::malformed(format!("the manifest {} of {name}", manifest.digest), reason));
        }
        self.blocking(move |store| blob::read_whole(&store.dir()?, &name, &manifest)).await
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        let (name, blob) = (name.clone(), blob.clone());
        let file = self.blocking(move |store| blob::open(&store.dir()?, &name, &blob, from)).await?;
        let (chunks, received) = mpsc::channel(READ_AHEAD);
        // Ends with the file, or when nobody receives any more.
        tokio::task::spawn_blocking(move || blob::read(file, most.unwrap_or(u64::MAX), &chunks));
        Ok(received)
    }

    async fn referrers(&self, name: &ImageName, subject: Digest) -> Result<Vec<Entry>> {
        let name = name.clone();
        self.blocking(move |store| layout::referrers(&store.dir()?, &name, subject)).await
    }
}

#[async_trait]
impl Store for DirStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Dir
    }

    fn locate(&self, spec: &ImageSpec) -> std::result::Result<ImageName, String> {
        super::layout::name(spec)
    }

    fn name_of(&self, image: &Image) -> ImageName {
        ImageName(image.id.to_string())
    }

    fn url(&self, name: &ImageName) -> String {
        format!("oci:{name}")
    }

    async fn probe(&self) -> Result<Option<u64>> {
        self.blocking(|store| {
            store.try_to_write()?;
            Ok(Some(store.available()?.saturating_sub(store.0.keep_free)))
        })
        .await
    }

    async fn prepare(&self, stage: &Stage) -> Result<()> {
        let stage = stage.clone();
        self.blocking(move |store| layout::prepare(&store.dir()?, &stage)).await
    }

    /// Never without looking: what lies in a directory may have been changed by anybody.
    async fn is_complete(&self, stage: &Stage, tree: &Tree) -> Result<Option<Verification>> {
        self.may_show(stage, tree).await.map(|()| None)
    }

    async fn look(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
        let (stage, blob) = (stage.clone(), blob.clone());
        self.blocking(move |store| blob::look(&store.dir()?, &stage, &blob)).await
    }

    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool> {
        Ok(matches!(self.look(stage, manifest).await?, Presence::Whole(_)))
    }

    async fn reserve(&self, bytes: u64) -> Result<()> {
        self.blocking(move |store| {
            let available = store.available()?;
            let needed = bytes.saturating_add(store.0.keep_free);
            if needed > available { Err(Error::NoSpace { needed, available }) } else { Ok(()) }
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
        let kept = blob::is_kept(blob);
        if kept {
            let begun = Begun { name: stage.name.0.clone(), digest: blob.digest.to_string() };
            let session = serde_json::to_string(&begun).map_err(|error| Error::malformed("a blob", error))?;
            stage.journal.note(blob.digest, &session).await?;
        }
        let (journal, digest) = (Arc::clone(&stage.journal), blob.digest);
        let (stage, blob) = (stage.clone(), blob.clone());
        self.blocking(move |store| blob::write(&store.dir()?, &stage, &blob, from, chunks)).await?;
        if kept { journal.forget(digest).await } else { Ok(()) }
    }

    async fn abort(&self, session: &str) -> Result<()> {
        let Ok(Begun { name, digest }) = serde_json::from_str(session) else { return Ok(()) };
        let Ok(digest) = digest.parse() else { return Ok(()) };
        self.blocking(move |store| blob::forsake(&store.dir()?, &ImageName(name), digest)).await
    }

    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()> {
        let (sender, chunks) = mpsc::channel(2);
        // Both fit into the channel.
        let _ = sender.try_send(Chunk::Data(content));
        let _ = sender.try_send(Chunk::End);
        drop(sender);
        self.write_blob(stage, manifest, 0, chunks).await
    }

    async fn publish(&self, stage: &Stage, tree: &Tree) -> Result<()> {
        self.may_show(stage, tree).await?;
        let (stage, tree) = (stage.clone(), tree.clone());
        self.blocking(move |store| layout::publish(&store.dir()?, &stage, &tree)).await
    }
}
