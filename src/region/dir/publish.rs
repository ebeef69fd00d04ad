//! Making an image visible: the only write that readers see, and so the only one that has to be the right claim's.
//!
//! Everything slow comes first and shows nothing. Then, under the lock of the image's directory ([`super::fence`]): the journal
//! confirms that the claim is good; the fence in the directory is the claim's own; the copy was not given up meanwhile; the
//! index is renamed into its place. When that is durable, the journal confirms the claim once more. If it does not, the index is
//! withdrawn, and what was visible before is visible again. A claim that is canceled after that, and before its worker has
//! reported, is taken back by its worker ([`retract`]).
//!
//! So a claim that was overtaken by another one never replaces what that one published: the other has written its fence
//! before. And a claim that was canceled leaves nothing visible. What remains: a copy that is canceled within these few steps
//! may be visible until it is withdrawn, and stays so if its process ends right then; and a file system without locks
//! (see [`super::fence::Lock`]) parts processes of one host by the fence alone.

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
    domain::{Digest, ImageName},
    region::{
        Error, Exchanged, MAX_MANIFEST_BYTES, Result, Stage, Tree,
        layout::{BLOBS, INDEX, Layout, MARKER, MARKER_CONTENT},
        store::shown,
    },
};

/// How often a lock that another writer holds is tried again, and for how long. It is held for a rename and two questions to
/// the database.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Set when what waits for a publication stops waiting: the copy was canceled, or given up.
#[derive(Debug)]
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Makes the directories of an image, makes the claim the one that may publish there, and removes what claims before it left
/// unfinished; but for the beginnings of large blobs, which this claim resumes.
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

/// Makes the image visible, in one step, and durable.
pub async fn publish(store: &DirStore, stage: &Stage, tree: &Tree) -> Result<()> {
    let abandoned = Arc::<AtomicBool>::default();
    let guard = Abandon(Arc::clone(&abandoned));
    let publication = Publication { store: store.clone(), stage: stage.clone(), abandoned };
    // By itself: what was begun is taken back, and the journal asked again, even if nothing waits for the answer any more.
    let result = match tokio::spawn(publication.run(tree.clone())).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Interrupted),
    };
    drop(guard);
    result
}

/// The lock of an image's directory. With `create` the directory is made each time: it may be removed while the lock is waited
/// for, by what removes leftovers.
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

/// An index that is whole and durable, and not yet in its place.
#[derive(Debug)]
struct StagedIndex {
    path: String,
    content: Vec<u8>,
    /// What it makes visible.
    root: Digest,
}

/// Writes everything that the image needs, and its index beside its place.
fn stage_index(dir: &Dir, stage: &Stage, tree: &Tree) -> Result<StagedIndex> {
    let name = &stage.name;
    let Some((root, _)) = tree.manifests.last() else { return Err(Error::ImageMissing(name.to_string().into())) };
    let layout = Layout::of(root, tree)?;
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
        tracing::debug!(%error, image = %name, "the signatures have no layout of their own; they are listed by the image's");
    }
    let path = partial::replacement(stage, INDEX);
    write::write_file(dir, &path, &layout.index)?;
    Ok(StagedIndex { path, content: layout.index, root: root.digest })
}

/// One image that becomes visible.
#[derive(Debug)]
struct Publication {
    store: DirStore,
    stage: Stage,
    abandoned: Arc<AtomicBool>,
}

impl Publication {
    async fn run(self, tree: Tree) -> Result<()> {
        let own = self.stage.clone();
        let index = self.store.blocking(&self.stage, move |dir, _| stage_index(dir, &own, &tree)).await?;
        let path = index.path.clone();
        let exchanged = self.exchange(index).await;
        let (name, failed) = (self.stage.name.clone(), exchanged.is_err());
        let settle = move |dir: &Dir, _: &Progress| {
            if failed {
                blob::remove(dir, &path)?;
            }
            sync_dir(dir, &name.0)?;
            sync_dir(dir, ".")
        };
        let settled = self.store.blocking(&self.stage, settle).await;
        exchanged?;
        // Asked even if the index is not durable: what is visible must be a good claim's.
        let confirmed = self.confirm().await;
        settled.and(confirmed)
    }

    /// Puts the index in its place, if the claim is good.
    async fn exchange(&self, index: StagedIndex) -> Result<()> {
        let Self { store, stage, abandoned } = self;
        let lock = lock(store, stage, false).await?;
        stage.journal.hold().await?;
        let (own, given_up) = (stage.clone(), Arc::clone(abandoned));
        let shown_as = store.shown_as(&stage.name);
        let put = move |dir: &Dir, _: &Progress| {
            // Looked at under the lock: nothing is replaced that this service did not put there.
            let there = shown(layout::root(dir, &own.name, None))?;
            own.may_show(&shown_as, index.root, &there)?;
            put_in_place(dir, &own, index, &lock, &given_up)
        };
        store.blocking(stage, put).await.inspect_err(|_| abandoned.store(true, Ordering::SeqCst))
    }

    /// Asks whether the claim was still good when the index was in its place and durable. If not, the index is withdrawn.
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

/// Takes back what was made visible for the stage, unless another claim has prepared the directory since: that one publishes
/// by itself. Returns whether it did.
pub async fn retract(store: &DirStore, stage: &Stage) -> Result<bool> {
    let Some(exchanged) = stage.exchange.take() else { return Ok(false) };
    let lock = lock(store, stage, false).await?;
    let own = stage.clone();
    let take_back = move |dir: &Dir, _: &Progress| {
        let is_own = lock.fence()? == Some(own.fence) && visible(dir, &own.name)?.as_ref() == Some(&exchanged.index);
        if is_own {
            withdraw(dir, &own, exchanged.previous, &lock)?;
            sync_dir(dir, &own.name.0)?;
        }
        Ok(is_own)
    };
    store.blocking(stage, take_back).await
}

/// The one step that readers see.
fn put_in_place(dir: &Dir, stage: &Stage, index: StagedIndex, lock: &Lock, abandoned: &AtomicBool) -> Result<()> {
    lock.require(stage.fence)?;
    let StagedIndex { path, content, .. } = index;
    // What the rename replaces, read under the lock.
    let previous = visible(dir, &stage.name)?;
    if abandoned.load(Ordering::SeqCst) {
        return Err(Error::Interrupted);
    }
    rename(dir, &path, &stage.name, INDEX)?;
    // A rename that hung until nothing waited for it any more.
    if abandoned.load(Ordering::SeqCst) {
        withdraw(dir, stage, previous, lock)?;
        return Err(Error::Interrupted);
    }
    // The same index again shows nothing that was not visible before.
    if previous.as_ref() != Some(&content) {
        stage.exchange.set(Exchanged { index: content, previous });
    }
    Ok(())
}

/// The index that is visible.
fn visible(dir: &Dir, name: &ImageName) -> Result<Option<Vec<u8>>> {
    match blob::read_bounded(dir, &format!("{name}/{INDEX}"), MAX_MANIFEST_BYTES) {
        Ok(content) => Ok(Some(content)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Shows again what was visible before. Under the lock nothing else was published since.
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
