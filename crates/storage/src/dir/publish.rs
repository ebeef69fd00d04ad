//! Publication of an image: the only write that readers see, and so the only one that requires the current claim.
//!
//! Slow work comes first and is not visible. Then, under the lock of the image's directory ([`super::fence`]), the
//! journal confirms the claim, the fence in the directory is checked, and the index is renamed into place unless the
//! copy was abandoned. Once the index is durable, the journal confirms the claim again. If it does not, the index is
//! withdrawn, and the previous one becomes visible again. If a claim is canceled after that and before its worker has
//! reported, the worker withdraws the index ([`retract`]).
//!
//! An overtaken claim therefore never replaces the index of the claim that overtook it, because that claim has already
//! written its fence. A canceled claim leaves nothing visible, with two exceptions. A copy that is canceled during
//! these steps may be visible until it is withdrawn, and stays visible if its process ends right then. On a file system
//! without locks (see [`super::fence::Lock`]), only the fence separates two processes of one host.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cap_std::fs::Dir;
use domain::{Digest, ImageName};
use tokio::time::{Instant, sleep};

use super::{
    DirStore, blob,
    fence::Lock,
    layout,
    operations::Progress,
    partial::{self, Partial},
    signatures, write,
};
use crate::{
    Error, MAX_MANIFEST_BYTES, ManifestGraph, ReplacedIndex, Result, Stage,
    layout::{BLOBS, INDEX, Layout, MARKER, MARKER_CONTENT},
    store::shown,
};

/// The interval between attempts to acquire a lock that another writer holds, and their time limit. A writer holds the
/// lock for one rename and two database queries.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Sets its flag when the caller stops waiting for the publication: the copy was canceled or abandoned.
#[derive(Debug)]
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Prepares an image's directory: creates it, gives the claim the right to publish, and removes the unfinished files of
/// earlier claims. Keeps the beginnings of large blobs, which this claim resumes.
pub async fn prepare(store: &DirStore, stage: &Stage) -> Result<()> {
    let lock = lock(store, stage, true).await?;
    stage.journal.hold().await?;
    let own = stage.clone();
    store
        .blocking(stage, move |dir, _| {
            if lock.set_fence(own.fence)? {
                sync_dir(dir, &own.name.0)?;
            }
            drop(lock);
            layout::clear_overtaken(dir, &own.name, own.fence)
        })
        .await
}

/// Makes the image visible atomically and durably.
pub async fn publish(store: &DirStore, stage: &Stage, graph: &ManifestGraph) -> Result<()> {
    let abandoned = Arc::<AtomicBool>::default();
    let guard = Abandon(Arc::clone(&abandoned));
    let publication = Publication { store: store.clone(), stage: stage.clone(), abandoned };
    // Runs on a separate task, so that the check of the claim and the withdrawal complete even if the caller stops
    // waiting.
    let result = match tokio::spawn(publication.run(graph.clone())).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Interrupted),
    };
    drop(guard);
    result
}

/// Acquires the lock of an image's directory. If `create` is true, creates the directory before each attempt, because
/// the cleanup of leftovers may remove it in between.
async fn lock(store: &DirStore, stage: &Stage, create: bool) -> Result<Lock> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let name = stage.name.clone();
        let acquire = move |dir: &Dir, _: &Progress| {
            if create {
                layout::create(dir, &name)?;
            }
            Lock::try_acquire(dir, &name)
        };
        if let Some(lock) = store.blocking(stage, acquire).await? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(Error::Contended(stage.name.to_string().into()));
        }
        sleep(LOCK_INTERVAL).await;
    }
}

/// An index that is complete and durable, but not yet in place.
#[derive(Debug)]
struct StagedIndex {
    path: String,
    content: Vec<u8>,
    /// The manifest that the index makes visible.
    root: Digest,
}

/// Writes everything that the image needs, and its index as an unfinished file.
fn stage_index(dir: &Dir, stage: &Stage, graph: &ManifestGraph) -> Result<StagedIndex> {
    let name = &stage.name;
    let Some((root, _)) = graph.manifests.last() else { return Err(Error::ImageMissing(name.to_string().into())) };
    let layout = Layout::of(root, graph)?;
    for (blob, content) in &layout.blobs {
        write::write_small(dir, stage, blob, content)?;
    }
    for (_, blobs) in layout::blob_directories(dir, name) {
        let begun = |partial, fence| matches!(partial, Partial::Resumable(_)) && fence <= stage.fence;
        layout::clear(dir, &blobs, begun)?;
        sync_dir(dir, &blobs)?;
    }
    sync_dir(dir, &format!("{name}/{BLOBS}"))?;
    let marker = partial::replacement(stage, MARKER);
    write::write_file(dir, &marker, MARKER_CONTENT.as_bytes())?;
    rename(dir, &marker, name, MARKER)?;
    if let Err(error) = signatures::show(dir, stage, layout.with_referrers.as_deref()) {
        tracing::debug!(%error, image = %name, "updating the signatures layout failed; the image's index still lists the signatures");
    }
    let path = partial::replacement(stage, INDEX);
    write::write_file(dir, &path, &layout.index)?;
    Ok(StagedIndex { path, content: layout.index, root: root.digest })
}

/// The publication of one image.
#[derive(Debug)]
struct Publication {
    store: DirStore,
    stage: Stage,
    abandoned: Arc<AtomicBool>,
}

impl Publication {
    async fn run(self, graph: ManifestGraph) -> Result<()> {
        let own = self.stage.clone();
        let index = self.store.blocking(&self.stage, move |dir, _| stage_index(dir, &own, &graph)).await?;
        let path = index.path.clone();
        let replaced = self.replace_index(index).await;
        let (name, failed) = (self.stage.name.clone(), replaced.is_err());
        let settle = move |dir: &Dir, _: &Progress| {
            if failed {
                blob::remove(dir, &path)?;
            }
            sync_dir(dir, &name.0)?;
            sync_dir(dir, ".")
        };
        let settled = self.store.blocking(&self.stage, settle).await;
        replaced?;
        // Confirmed even if the sync failed: a visible index must belong to the current claim.
        let confirmed = self.confirm().await;
        settled.and(confirmed)
    }

    /// Renames the index into place, if the claim is current.
    async fn replace_index(&self, index: StagedIndex) -> Result<()> {
        let Self { store, stage, abandoned } = self;
        let lock = lock(store, stage, false).await?;
        stage.journal.hold().await?;
        let (own, given_up) = (stage.clone(), Arc::clone(abandoned));
        let shown_as = store.shown_as(&stage.name);
        let put = move |dir: &Dir, _: &Progress| {
            // Checked under the lock: the rename must not replace an index that this service did not write.
            let there = shown(layout::root(dir, &own.name, None))?;
            own.may_show(&shown_as, index.root, &there)?;
            put_in_place(dir, &own, index, &lock, &given_up)
        };
        store.blocking(stage, put).await.inspect_err(|_| abandoned.store(true, Ordering::SeqCst))
    }

    /// Confirms that the claim was still current once the index was in place and durable. Withdraws the index
    /// otherwise.
    async fn confirm(&self) -> Result<()> {
        let given_up = if self.abandoned.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) };
        let held = self.stage.journal.hold().await.and(given_up);
        if let Err(error) = &held
            && retract(&self.store, &self.stage).await?
        {
            tracing::warn!(image = %self.stage.name, %error, "claim lost during publication; withdrew the index");
        }
        held
    }
}

/// Withdraws the index that was published for the stage, unless another claim has prepared the directory since; that
/// claim publishes its own index. Returns whether the index was withdrawn.
pub async fn retract(store: &DirStore, stage: &Stage) -> Result<bool> {
    let Some(replaced) = stage.rollback.take() else { return Ok(false) };
    let lock = lock(store, stage, false).await?;
    let own = stage.clone();
    let take_back = move |dir: &Dir, _: &Progress| {
        let is_own = lock.fence()? == Some(own.fence) && visible(dir, &own.name)?.as_ref() == Some(&replaced.published);
        if is_own {
            withdraw(dir, &own, replaced.previous, &lock)?;
            sync_dir(dir, &own.name.0)?;
        }
        Ok(is_own)
    };
    store.blocking(stage, take_back).await
}

/// Renames the index into place: the one step that readers see.
fn put_in_place(dir: &Dir, stage: &Stage, index: StagedIndex, lock: &Lock, abandoned: &AtomicBool) -> Result<()> {
    lock.require(stage.fence)?;
    let StagedIndex { path, content, .. } = index;
    // The index that the rename replaces, read under the lock.
    let previous = visible(dir, &stage.name)?;
    if abandoned.load(Ordering::SeqCst) {
        return Err(Error::Interrupted);
    }
    rename(dir, &path, &stage.name, INDEX)?;
    // The caller may have stopped waiting while the rename hung.
    if abandoned.load(Ordering::SeqCst) {
        withdraw(dir, stage, previous, lock)?;
        return Err(Error::Interrupted);
    }
    // An identical index changes nothing, so there is nothing to withdraw.
    if previous.as_ref() != Some(&content) {
        stage.rollback.set(ReplacedIndex { published: content, previous });
    }
    Ok(())
}

/// Returns the visible index.
fn visible(dir: &Dir, name: &ImageName) -> Result<Option<Vec<u8>>> {
    match blob::read_bounded(dir, &format!("{name}/{INDEX}"), MAX_MANIFEST_BYTES) {
        Ok(content) => Ok(Some(content)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Restores the previous index. The lock ensures that no other claim has published since.
fn withdraw(dir: &Dir, stage: &Stage, previous: Option<Vec<u8>>, _under: &Lock) -> Result<()> {
    match previous {
        None => blob::remove(dir, &format!("{}/{INDEX}", stage.name))?,
        Some(content) => {
            let path = partial::replacement(stage, INDEX);
            write::write_file(dir, &path, &content)?;
            rename(dir, &path, &stage.name, INDEX)?;
        }
    }
    Ok(())
}

fn rename(dir: &Dir, from: &str, name: &ImageName, file: &str) -> Result<()> {
    let path = format!("{name}/{file}");
    dir.rename(from, dir, &path).map_err(Error::io("renaming", path))
}

/// Makes the entries of a directory durable.
fn sync_dir(dir: &Dir, path: &str) -> Result<()> {
    let sync = || dir.open(Path::new(path))?.sync_all();
    sync().map_err(Error::io("syncing", path))
}
