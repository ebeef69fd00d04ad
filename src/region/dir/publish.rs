//! Making an image visible: the only write that readers see, and so the only one that has to be the right claim's.
//!
//! Everything slow comes first and shows nothing. Then, under the lock of the image's directory ([`super::fence`]): the journal
//! confirms that the claim is good; the fence in the directory is the claim's own; the copy was not given up meanwhile; the
//! index is renamed into its place; the journal confirms the claim once more. If it does not, the index is withdrawn, and what was
//! visible before is visible again.
//!
//! So a claim that was overtaken by another one never replaces what that one published: the other has written its fence
//! before. And a claim that was canceled leaves nothing visible. What remains: between the journal's two answers a copy that is
//! canceled in this very moment may be visible until it is withdrawn, and stays so if its process is killed right then; and a
//! file system without locks (see [`super::fence::Lock`]) parts processes of one host by the fence alone.

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
    write,
};
use crate::{
    domain::ImageName,
    region::{
        Error, MAX_MANIFEST_BYTES, Result, Stage, Tree,
        layout::{INDEX, Index, MARKER, MARKER_CONTENT},
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
    let lock = lock(store, stage).await?;
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
    let (own, own_tree) = (stage.clone(), tree.clone());
    let index = store.blocking(stage, move |dir, _| stage_index(dir, &own, &own_tree)).await?;
    let abandoned = Arc::<AtomicBool>::default();
    let guard = Abandon(Arc::clone(&abandoned));
    let exchange = Exchange { store: store.clone(), stage: stage.clone(), index, abandoned };
    // By itself: once the index is in its place, the journal is asked again even if nothing waits for the answer any more.
    let result = match tokio::spawn(exchange.run()).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Interrupted),
    };
    drop(guard);
    result
}

/// The lock of an image's directory, which is made if it is not there: what is left over may just be removed.
async fn lock(store: &DirStore, stage: &Stage) -> Result<Lock> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let name = stage.name.clone();
        let acquire = move |dir: &Dir, _: &Progress| {
            layout::create(dir, &name)?;
            Lock::try_acquire(dir, &name)
        };
        if let Some(lock) = store.blocking(stage, acquire).await? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(Error::Contended(stage.name.to_string()));
        }
        sleep(LOCK_INTERVAL).await;
    }
}

/// An index that is whole and durable, and not yet in its place.
#[derive(Debug)]
struct StagedIndex {
    path: String,
    content: Vec<u8>,
}

/// Writes everything that the image needs, and its index beside its place.
fn stage_index(dir: &Dir, stage: &Stage, tree: &Tree) -> Result<StagedIndex> {
    let name = &stage.name;
    let Some((root, _)) = tree.manifests.last() else { return Err(Error::ImageMissing(name.to_string())) };
    for referrers in &tree.referrers {
        let (descriptor, content) = referrers.index();
        write::write_small(dir, stage, &descriptor, &content)?;
    }
    layout::clear(dir, &layout::blobs(name), |partial, fence| {
        matches!(partial, Partial::Resumable(_)) && fence <= stage.fence
    })?;
    sync_dir(dir, &layout::blobs(name))?;
    sync_dir(dir, &format!("{name}/blobs"))?;
    let marker = partial::replacement(stage, MARKER);
    write::write_file(dir, &marker, MARKER_CONTENT.as_bytes())?;
    rename(dir, &marker, name, MARKER)?;
    let content = Index::of(root, tree).content()?;
    let path = partial::replacement(stage, INDEX);
    write::write_file(dir, &path, &content)?;
    Ok(StagedIndex { path, content })
}

/// The exchange of what is visible.
#[derive(Debug)]
struct Exchange {
    store: DirStore,
    stage: Stage,
    index: StagedIndex,
    abandoned: Arc<AtomicBool>,
}

/// What was visible before: the content of its index, or nothing.
type Previous = Option<Vec<u8>>;

impl Exchange {
    async fn run(self) -> Result<()> {
        let Self { store, stage, index: StagedIndex { path, content }, abandoned } = self;
        let (result, path) = Self::exchange(&store, &stage, path, content, abandoned).await;
        let name = stage.name.clone();
        let failed = result.is_err();
        let settle = move |dir: &Dir, _: &Progress| {
            if failed {
                blob::remove(dir, &path)?;
            }
            sync_dir(dir, &name.0)?;
            sync_dir(dir, ".")
        };
        let settled = store.blocking(&stage, settle).await;
        result.and(settled)
    }

    /// The path comes back with the result: what is left there is removed if the exchange failed.
    async fn exchange(
        store: &DirStore,
        stage: &Stage,
        path: String,
        content: Vec<u8>,
        abandoned: Arc<AtomicBool>,
    ) -> (Result<()>, String) {
        let (staged, given_up) = (path.clone(), Arc::clone(&abandoned));
        let act = async {
            let lock = lock(store, stage).await?;
            stage.journal.hold().await?;
            let own = stage.clone();
            let put = move |dir: &Dir, _: &Progress| {
                lock.require(own.fence)?;
                let previous = visible(dir, &own.name)?;
                if abandoned.load(Ordering::SeqCst) {
                    return Err(Error::Interrupted);
                }
                rename(dir, &path, &own.name, INDEX)?;
                // A rename that hung until nothing waited for it any more.
                if abandoned.load(Ordering::SeqCst) {
                    withdraw(dir, &own, previous, &lock)?;
                    return Err(Error::Interrupted);
                }
                Ok((lock, previous))
            };
            let (lock, previous) =
                store.blocking(stage, put).await.inspect_err(|_| given_up.store(true, Ordering::SeqCst))?;
            // The same image again: nothing was shown that was not visible before.
            let unchanged = previous.as_deref() == Some(&content[..]);
            match stage.journal.hold().await {
                Err(error) if !unchanged => {
                    let own = stage.clone();
                    store.blocking(stage, move |dir, _| withdraw(dir, &own, previous, &lock)).await?;
                    tracing::warn!(image = %stage.name, %error, "the claim was lost while the image became visible; it was withdrawn");
                    Err(error)
                }
                held => held,
            }
        };
        (act.await, staged)
    }
}

/// The index that is visible.
fn visible(dir: &Dir, name: &ImageName) -> Result<Previous> {
    match blob::read_bounded(dir, &format!("{name}/{INDEX}"), MAX_MANIFEST_BYTES) {
        Ok(content) => Ok(Some(content)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Shows again what was visible before. Under the lock nothing else was published since.
fn withdraw(dir: &Dir, stage: &Stage, previous: Previous, _under: &Lock) -> Result<()> {
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
