//! Tests of the directory store: claims are overtaken, canceled and aborted at every step, and the visible image is
//! always that of the current claim.

mod algorithms;
mod leftovers;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Algorithm, Descriptor, Digest, ImageName, Verification};
use tokio::sync::{Semaphore, mpsc};

use super::{DirStore, fence::FENCE};
use crate::{Chunk, Error, Journal, ManifestGraph, Memory, Presence, Result, Source as _, Stage, Store as _};

/// Waits until a condition is met.
pub async fn until(met: impl Fn() -> bool) {
    let wait = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it comes");
}

/// A journal that confirms the claim a given number of times, and responds only as often as it has permits.
#[derive(Debug)]
struct Scripted {
    /// The number of times that the claim is confirmed.
    good: usize,
    asked: AtomicUsize,
    answers: Semaphore,
}

impl Scripted {
    fn good_for(good: usize) -> Arc<Self> {
        Arc::new(Self { good, asked: AtomicUsize::new(0), answers: Semaphore::new(Semaphore::MAX_PERMITS) })
    }

    /// Creates a journal that responds to `answers` queries and blocks the next one.
    fn silent_after(answers: usize) -> Arc<Self> {
        Arc::new(Self { good: usize::MAX, asked: AtomicUsize::new(0), answers: Semaphore::new(answers) })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Journal for Scripted {
    async fn hold(&self) -> Result<()> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        self.answers.acquire().await.map_err(|_| Error::Interrupted)?.forget();
        if asked < self.good { Ok(()) } else { Err(Error::Overtaken) }
    }

    async fn upload(&self, _: Digest) -> Result<Option<String>> {
        Ok(None)
    }

    async fn note(&self, _: Digest, _: &str) -> Result<()> {
        Ok(())
    }

    async fn forget(&self, _: Digest) -> Result<()> {
        Ok(())
    }
}

/// A directory store with one image.
struct Place {
    directory: tempfile::TempDir,
    store: DirStore,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = DirStore::new(directory.path());
        Self { directory, store }
    }

    fn file(&self, file: &str) -> PathBuf {
        self.directory.path().join("a").join(file)
    }

    /// Returns the visible root.
    async fn visible(&self) -> Option<Digest> {
        self.store.root(&name()).await.expect("it is read").map(|root| root.digest)
    }

    /// Writes all of an image except its index.
    async fn write(&self, stage: &Stage, tree: &ManifestGraph) {
        self.store.prepare(stage).await.expect("it is prepared");
        for (manifest, content) in &tree.manifests {
            self.store.write_manifest(stage, manifest, content.clone()).await.expect("it is written");
        }
    }

    /// Returns the names of the unfinished files.
    fn unfinished(&self) -> Vec<String> {
        let directories = ["", "blobs/sha256", "blobs/sha512"].map(|directory| self.file(directory));
        let directories = directories.into_iter().filter(|directory| directory.exists());
        let files = directories.flat_map(|directory| fs::read_dir(directory).expect("a directory"));
        let names = files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned());
        names.filter(|name| super::partial::parse(name).is_some()).collect()
    }
}

fn name() -> ImageName {
    ImageName("a".to_owned())
}

fn stage(fence: u64, journal: Arc<dyn Journal>) -> Stage {
    // Set because the visible image was published without a record of it.
    Stage { overwrite: true, ..Stage::new(name(), fence, journal) }
}

fn good(fence: u64) -> Stage {
    stage(fence, Arc::<Memory>::default())
}

fn descriptor(content: &[u8]) -> Descriptor {
    let digest = Algorithm::CANONICAL.digest(content);
    Descriptor { media_type: "application/octet-stream".into(), digest, size: content.len() as u64 }
}

/// Returns an image of one manifest, with a different digest for every text.
fn tree(text: &str) -> ManifestGraph {
    let content = Bytes::from(format!(r#"{{"schemaVersion":2,"annotations":{{"is":"{text}"}}}}"#));
    let manifest = Descriptor { media_type: crate::MANIFEST_TYPE.into(), ..descriptor(&content) };
    ManifestGraph { manifests: vec![(manifest, content)], ..ManifestGraph::default() }
}

fn root(tree: &ManifestGraph) -> Digest {
    tree.manifests[0].0.digest
}

#[tokio::test]
async fn an_overtaken_claim_never_replaces_what_a_later_one_published() {
    let place = Place::new();
    let (old, new) = (tree("old"), tree("new"));
    let overtaken = good(7);
    place.write(&overtaken, &old).await;
    let current = good(9);
    place.write(&current, &new).await;

    // Refused both before and after the later claim has published.
    let refused = place.store.publish(&overtaken, &old).await;
    assert!(matches!(refused, Err(Error::Overtaken)), "{refused:?}");
    assert_eq!(place.visible().await, None);
    place.store.publish(&current, &new).await.expect("it is published");
    let refused = place.store.publish(&overtaken, &old).await;
    assert!(matches!(refused, Err(Error::Overtaken)), "{refused:?}");
    assert_eq!(place.visible().await, Some(root(&new)));
    assert_eq!(place.unfinished(), Vec::<String>::new());
}

#[tokio::test]
async fn a_claim_that_is_no_longer_good_prepares_nothing_and_publishes_nothing() {
    let place = Place::new();
    let current = good(9);
    place.write(&current, &tree("new")).await;

    // A late writer of an older claim does not take over the right to publish.
    let late = stage(7, Scripted::good_for(0));
    let refused = place.store.prepare(&late).await;
    assert!(matches!(refused, Err(Error::Overtaken)), "{refused:?}");
    place.store.publish(&current, &tree("new")).await.expect("it is published");

    let canceled = stage(11, Scripted::good_for(1));
    place.write(&canceled, &tree("newer")).await;
    let refused = place.store.publish(&canceled, &tree("newer")).await;
    assert!(matches!(refused, Err(Error::Overtaken)), "{refused:?}");
    assert_eq!(place.visible().await, Some(root(&tree("new"))));
}

/// The database is the authority: after a restore from a backup, the database's fences may be lower than those in the
/// directory.
#[tokio::test]
async fn a_good_claim_with_a_lower_fence_publishes() {
    let place = Place::new();
    place.write(&good(9), &tree("before")).await;
    let restored = good(3);
    place.write(&restored, &tree("after")).await;
    place.store.publish(&restored, &tree("after")).await.expect("it is published");
    assert_eq!(place.visible().await, Some(root(&tree("after"))));
}

#[tokio::test]
async fn a_claim_that_is_canceled_while_its_index_is_put_in_place_is_withdrawn() {
    let place = Place::new();
    // Current when it prepares and right before the index is renamed, but not right after.
    let canceled = stage(7, Scripted::good_for(2));
    place.write(&canceled, &tree("first")).await;
    let refused = place.store.publish(&canceled, &tree("first")).await;
    assert!(matches!(refused, Err(Error::Overtaken)), "{refused:?}");
    assert_eq!(place.visible().await, None);

    // The previous image is visible again.
    let earlier = good(8);
    place.write(&earlier, &tree("earlier")).await;
    place.store.publish(&earlier, &tree("earlier")).await.expect("it is published");
    let canceled = stage(9, Scripted::good_for(2));
    place.write(&canceled, &tree("second")).await;
    place.store.publish(&canceled, &tree("second")).await.expect_err("it was canceled");
    assert_eq!(place.visible().await, Some(root(&tree("earlier"))));
    assert_eq!(place.unfinished(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_canceled_copy_has_published_is_taken_back_unless_another_claim_came_since() {
    let place = Place::new();
    let earlier = good(7);
    place.write(&earlier, &tree("earlier")).await;
    place.store.publish(&earlier, &tree("earlier")).await.expect("it is published");
    let canceled = good(8);
    place.write(&canceled, &tree("canceled")).await;
    place.store.publish(&canceled, &tree("canceled")).await.expect("it is published");
    assert!(place.store.retract(&canceled).await.expect("it is taken back"));
    assert_eq!(place.visible().await, Some(root(&tree("earlier"))));
    assert!(!place.store.retract(&canceled).await.expect("an answer"), "once");

    // Publishing the same image again changes nothing, so there is nothing to withdraw.
    let again = good(9);
    place.write(&again, &tree("earlier")).await;
    place.store.publish(&again, &tree("earlier")).await.expect("it is published");
    assert!(!place.store.retract(&again).await.expect("an answer"));

    let overtaken = good(10);
    place.write(&overtaken, &tree("overtaken")).await;
    place.store.publish(&overtaken, &tree("overtaken")).await.expect("it is published");
    place.store.prepare(&good(11)).await.expect("another claim comes");
    assert!(!place.store.retract(&overtaken).await.expect("an answer"), "the other claim publishes by itself");
}

#[tokio::test]
async fn a_publication_that_is_given_up_before_its_last_step_shows_nothing() {
    let place = Place::new();
    let journal = Scripted::silent_after(1);
    let own = stage(7, Arc::clone(&journal) as Arc<dyn Journal>);
    place.write(&own, &tree("a")).await;
    let (store, given_up) = (place.store.clone(), own.clone());
    let publication = tokio::spawn(async move { store.publish(&given_up, &tree("a")).await });
    until(|| journal.asked() == 2).await;
    publication.abort();
    publication.await.expect_err("it was given up");

    // The journal confirms the claim only now, after the copy was abandoned.
    journal.answers.add_permits(100);
    until(|| place.unfinished().is_empty()).await;
    assert_eq!(place.visible().await, None);
    place.store.publish(&own, &tree("a")).await.expect("the same claim tries again");
    assert_eq!(place.visible().await, Some(root(&tree("a"))));
}

#[tokio::test]
async fn a_publication_that_is_given_up_after_its_last_step_still_asks_whether_it_was_good() {
    let place = Place::new();
    let answered = Arc::new(Scripted { good: 2, asked: AtomicUsize::new(0), answers: Semaphore::new(2) });
    let own = stage(7, Arc::clone(&answered) as Arc<dyn Journal>);
    place.write(&own, &tree("a")).await;
    let store = place.store.clone();
    let publication = tokio::spawn(async move { store.publish(&own, &tree("a")).await });
    until(|| answered.asked() == 3).await;
    assert_eq!(place.visible().await, Some(root(&tree("a"))), "it waits for the journal's second answer");
    publication.abort();
    publication.await.expect_err("it was given up");
    answered.answers.add_permits(100);
    until(|| !place.file("index.json").exists()).await;
}

/// Another claim may have overtaken the claim that checks, and may be writing the blob.
#[tokio::test]
async fn looking_removes_nothing_and_a_damaged_blob_is_replaced() {
    let place = Place::new();
    let own = good(7);
    place.store.prepare(&own).await.expect("it is prepared");
    let content = b"what it should be";
    let blob = descriptor(content);
    let file = place.file("blobs/sha256").join(blob.digest.hex());
    fs::write(&file, b"what it shouldn't").expect("a damaged blob");
    assert_eq!(place.store.stat_blob(&own, &blob).await.expect("an answer"), Presence::Absent);
    assert_eq!(fs::read(&file).expect("it is there"), b"what it shouldn't");

    let (sender, chunks) = mpsc::channel(2);
    sender.send(Chunk::Data(Bytes::from_static(content))).await.expect("there is room");
    sender.send(Chunk::End).await.expect("there is room");
    place.store.write_blob(&own, &blob, 0, chunks).await.expect("it is written");
    assert_eq!(place.store.stat_blob(&own, &blob).await.expect("an answer"), Presence::Whole(Verification::Verified));
}

#[tokio::test]
async fn a_blob_that_is_given_up_leaves_no_file() {
    let place = Place::new();
    let own = good(7);
    place.store.prepare(&own).await.expect("it is prepared");
    let (sender, chunks) = mpsc::channel(2);
    let (store, given_up, blob) = (place.store.clone(), own.clone(), descriptor(b"more than comes"));
    let write = tokio::spawn(async move { store.write_blob(&given_up, &blob, 0, chunks).await });
    sender.send(Chunk::Data(Bytes::from_static(b"more"))).await.expect("there is room");
    until(|| !place.unfinished().is_empty()).await;
    write.abort();
    until(|| place.unfinished().is_empty()).await;

    // A stream that breaks off is not a whole blob either.
    let (sender, chunks) = mpsc::channel(2);
    sender.send(Chunk::Data(Bytes::from_static(b"more"))).await.expect("there is room");
    drop(sender);
    let broken = place.store.write_blob(&own, &descriptor(b"more than comes"), 0, chunks).await;
    assert!(matches!(broken, Err(Error::Interrupted)), "{broken:?}");
    assert_eq!(place.unfinished(), Vec::<String>::new());
}

#[tokio::test]
async fn only_a_directory_that_is_not_there_is_said_not_to_exist() {
    let directory = tempfile::tempdir().expect("a directory");
    let gone = DirStore::new(directory.path().join("gone")).root(&name()).await;
    assert!(matches!(gone, Err(Error::Vanished(_))), "{gone:?}");
    let file = directory.path().join("file");
    fs::write(&file, "no directory").expect("a file");
    let file = DirStore::new(file).root(&name()).await;
    assert!(matches!(file, Err(Error::Vanished(_))), "{file:?}");

    // A name that is too long, like other errors of the operating system, is not reported as a missing directory.
    let long =
        DirStore::new(directory.path().join("x".repeat(300))).root(&name()).await.expect_err("it can't be opened");
    let text = long.to_string();
    assert!(matches!(long, Error::Io { action: "opening", .. }), "{text}");
    assert!(text.contains("File name too long"), "the cause is kept: {text}");
}

#[tokio::test]
async fn the_fence_is_no_part_of_the_image() {
    let place = Place::new();
    let own = good(7);
    place.write(&own, &tree("a")).await;
    place.store.publish(&own, &tree("a")).await.expect("it is published");
    assert_eq!(fs::read_to_string(place.file(FENCE)).expect("it is there").trim(), "00000000000000000007");
    let mut files: Vec<_> =
        fs::read_dir(place.file("")).expect("a directory").map(|f| f.expect("a file").file_name()).collect();
    files.sort();
    assert_eq!(files, [FENCE, "blobs", "index.json", "oci-layout"]);
}

#[tokio::test]
async fn what_other_images_have_is_found_out_once_for_all_blobs() {
    let place = Place::new();
    let content = b"a layer that several have";
    let blob = descriptor(content);
    let tree = ManifestGraph { blobs: vec![blob.clone()], ..tree("mine") };
    let put = |image: &str, content: &[u8], visible: bool| {
        let other = place.directory.path().join(image);
        fs::create_dir_all(other.join("blobs/sha256")).expect("a layout");
        fs::write(other.join("blobs/sha256").join(blob.digest.hex()), content).expect("a blob");
        if visible {
            fs::write(other.join("index.json"), "{}").expect("an index");
        }
    };
    // The blobs of an incomplete image are not linked, nor are damaged blobs.
    put("unfinished", content, false);
    put("damaged", b"a layer that is another.", true);
    for (claim, expected) in [(7, Presence::Absent), (8, Presence::Whole(Verification::Verified))] {
        let own = good(claim);
        place.store.prepare(&own).await.expect("it is prepared");
        place.store.is_complete(&own, &tree).await.expect("it is looked at");
        assert_eq!(place.store.stat_blob(&own, &blob).await.expect("an answer"), expected, "claim {claim}");
        put("whole", content, true);
    }
    assert_eq!(fs::read(place.file("blobs/sha256").join(blob.digest.hex())).expect("it is linked"), content);
}
