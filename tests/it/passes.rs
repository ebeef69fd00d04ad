//! Fan-out: the source is read once for all regions, and a region that lags is detached. Uses stores that count bytes
//! and that block until a gate opens.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use appferry::{
    domain::{
        Backoff, Clock, Content, Descriptor, Image, ImageKind, ImageName, RegionId, RegionStatus, Regions, RequestId,
        Synchronization, SynchronizationState, Targets, Verification, WorkerId, relay::Topology,
    },
    region::{
        Backend, BlobChunks, Chunk, DirStore, ImageSpec, Presence, Result, Source, Stage, Store, StoreKind, Stores,
        Tree,
    },
    state::{Ask, Settings as StateSettings, State, Tasks, migrate},
    worker::{Settings, Worker},
};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    images::{self, noise},
    until,
};

const LEASE: Duration = Duration::from_secs(2);
const OTHERS: [&str; 3] = ["one", "three", "two"];

/// A directory store that counts the blob bytes read from it, and whose writers wait for a gate.
#[derive(Debug, Clone)]
struct Observed {
    store: DirStore,
    read: Arc<AtomicU64>,
    open: watch::Receiver<bool>,
    writing: Arc<Writing>,
    /// Whether `prepare` panics.
    panics: Arc<AtomicBool>,
    /// The number of blob bytes after which further reads wait for the gate.
    held_after: Arc<AtomicU64>,
    source_open: watch::Receiver<bool>,
}

/// The current, maximum and total number of blob writes.
#[derive(Debug, Default)]
struct Writing {
    begun: AtomicU64,
    now: AtomicU64,
    most: AtomicU64,
}

/// Counts a write until dropped: a write may be canceled.
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
impl Source for Observed {
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
impl Store for Observed {
    fn kind(&self) -> StoreKind {
        self.store.kind()
    }

    async fn probe(&self) -> Result<Option<u64>> {
        self.store.probe().await
    }

    fn locate(&self, spec: &ImageSpec) -> std::result::Result<ImageName, String> {
        self.store.locate(spec)
    }

    fn name_of(&self, image: &Image) -> ImageName {
        self.store.name_of(image)
    }

    fn url(&self, name: &ImageName) -> String {
        self.store.url(name)
    }

    async fn prepare(&self, stage: &Stage) -> Result<()> {
        assert!(!self.panics.load(Ordering::Relaxed), "the store panics, as it was told to");
        self.store.prepare(stage).await
    }

    async fn is_complete(&self, stage: &Stage, tree: &Tree) -> Result<Option<Verification>> {
        self.store.is_complete(stage, tree).await
    }

    async fn look(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
        self.store.look(stage, blob).await
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

    async fn publish(&self, stage: &Stage, tree: &Tree) -> Result<()> {
        self.store.publish(stage, tree).await
    }
}

/// A state, a worker, and four stores.
struct House {
    directory: tempfile::TempDir,
    state: State,
    state_tasks: Tasks,
    worker: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    /// Blob bytes that were read from the home region.
    read: Arc<AtomicU64>,
    /// The writes of region `one`.
    writing: Arc<Writing>,
    /// Opens the gate of region `one`'s writers.
    gate: watch::Sender<bool>,
    /// Makes region `one` panic.
    panics: Arc<AtomicBool>,
    /// The number of bytes after which reads of the home region block, and the gate that releases them.
    held_after: Arc<AtomicU64>,
    source_gate: watch::Sender<bool>,
}

fn id(name: &str) -> RegionId {
    name.parse().expect("an id")
}

impl House {
    async fn build(layers: &[Vec<u8>], patience: Duration, gate_open: bool) -> Self {
        Self::build_with(layers, patience, Duration::from_secs(60), gate_open).await
    }

    async fn build_with(layers: &[Vec<u8>], patience: Duration, stall: Duration, gate_open: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (gate, held) = watch::channel(gate_open);
        let (_, open) = watch::channel(true);
        let read = Arc::<AtomicU64>::default();
        let writing = Arc::<Writing>::default();
        let panics = Arc::<AtomicBool>::default();
        let held_after = Arc::new(AtomicU64::new(u64::MAX));
        let (source_gate, source_open) = watch::channel(false);
        let observed = |region: &str| -> (RegionId, Arc<dyn Store>) {
            let path = directory.path().join(region);
            std::fs::create_dir(&path).expect("a region's directory");
            let open = if region == "one" { held.clone() } else { open.clone() };
            let read = if region == "home" { Arc::clone(&read) } else { Arc::default() };
            let writing = if region == "one" { Arc::clone(&writing) } else { Arc::default() };
            let panics = if region == "one" { Arc::clone(&panics) } else { Arc::default() };
            let (held_after, source_open) = (Arc::clone(&held_after), source_open.clone());
            let store = DirStore::new(path);
            (id(region), Arc::new(Observed { store, read, open, writing, panics, held_after, source_open }))
        };
        let stores = Stores::new(["home"].into_iter().chain(OTHERS).map(observed));
        images::write(&directory.path().join("home/a"), layers);

        let settings = StateSettings::new(format!("sqlite://{}/state.db", directory.path().display()));
        migrate(&settings).await.expect("the schema");
        let stop = CancellationToken::new();
        let regions = Regions::new(id("home"), OTHERS.map(id));
        let (state, state_tasks) = State::open(&settings, regions, stop.clone()).await.expect("it opens");
        let name = ImageName("a".into());
        let home = stores.get(&id("home")).expect("the home region");
        let root = home.root(&name).await.expect("it is there").expect("it is there");
        let size = Tree::read(&**home, &name, &root, &[]).await.expect("it is whole").size();
        let image = Image {
            id: "a".parse().expect("an id"),
            name: "a".into(),
            version: String::new(),
            description: String::new(),
            kind: ImageKind::Vm,
            source: name,
            home: id("home"),
            content: Content::Blobs(root),
            size,
            created_at: Clock::system().now(),
            superseded_by: None,
            absent: Vec::new(),
        };
        state.image_add(&image).await.expect("it is added");
        let seconds = Duration::from_secs;
        let settings = Settings {
            id: WorkerId("worker".into()),
            regions: OTHERS.map(id).to_vec(),
            concurrency: 2,
            lease: LEASE,
            heartbeat: LEASE / 20,
            poll: Duration::from_millis(50),
            patience,
            stall,
            backoff: Backoff { first: seconds(1), longest: seconds(1), attempts: 1 },
        };
        let worker = tokio::spawn(
            Worker::new(state.clone(), Backend::Stores(stores), Topology::default(), settings).run(stop.clone()),
        );
        Self { directory, state, state_tasks, worker, stop, read, writing, gate, panics, held_after, source_gate }
    }

    async fn synchronize(&self) -> RequestId {
        let ask = Ask {
            request_id: RequestId::generate(),
            image: "a".parse().expect("an id"),
            targets: Targets::All,
            principal: "p".into(),
            overwrite: false,
            token: None,
            trace: None,
        };
        self.state.accept(ask).await.expect("it is accepted")
    }

    /// Waits until these regions have the image, and returns the state of all.
    async fn available(&self, request: RequestId, regions: &[&str]) -> Synchronization {
        until("the image", async || {
            let found = self.state.synchronization_get(request).await.expect("it is known");
            assert_ne!(found.state, SynchronizationState::Failed, "{found:?}");
            let there = |region: &&str| {
                let view = found.regions.iter().find(|view| view.region == id(region)).expect("the region");
                view.status == RegionStatus::Available
            };
            regions.iter().all(there).then_some(found)
        })
        .await
    }

    fn layout(&self, region: &str) -> PathBuf {
        self.directory.path().join(region).join("a")
    }

    async fn stop(self) {
        self.stop.cancel();
        self.worker.await.expect("no panic");
        self.state_tasks.join().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_read_once_for_all_regions() {
    let layers = [noise(7 << 20, 1), noise(3 << 20, 2), noise(1_000, 3)];
    let house = House::build(&layers, Duration::from_secs(30), true).await;
    let request = house.synchronize().await;
    house.available(request, &OTHERS).await;
    let config = r#"{"architecture":"amd64","os":"linux"}"#.len();
    let blobs: usize = layers.iter().map(Vec::len).sum::<usize>() + config;
    assert_eq!(house.read.load(Ordering::Relaxed), blobs as u64);
    for region in OTHERS {
        images::verify(&house.layout(region));
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_lags_holds_nobody_and_goes_on_alone() {
    let house = House::build(&[noise(24 << 20, 1), noise(9 << 20, 2)], Duration::from_millis(200), false).await;
    let request = house.synchronize().await;
    let seen = house.available(request, &["three", "two"]).await;
    let held = &seen.regions[0];
    assert_eq!(
        (held.region.clone(), held.status),
        (id("one"), RegionStatus::Copying),
        "the others did not wait for it"
    );
    assert!(!images::visible(&house.layout("one")));

    house.gate.send(true).expect("somebody waits");
    let done = house.available(request, &OTHERS).await;
    assert!(done.regions.iter().all(|region| region.attempt == 1), "lagging is no fault: {done:?}");
    // Two layers and the configuration, each once: received bytes are not sent again, and no upload is interrupted.
    assert_eq!(house.writing.begun.load(Ordering::Relaxed), 3);
    let root = images::verify(&house.layout("home"));
    assert_eq!(images::verify(&house.layout("one")), root);
    house.stop().await;
}

/// Blobs that are smaller than a queue must not accumulate at a region that lags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_blobs_do_not_pile_up_at_a_region_that_lags() {
    let layers: Vec<_> = (0..60).map(|seed| noise(50_000, seed)).collect();
    let house = House::build(&layers, Duration::from_millis(200), false).await;
    let request = house.synchronize().await;
    house.available(request, &["three", "two"]).await;
    assert!(house.writing.most.load(Ordering::Relaxed) <= 16, "{:?}", house.writing);
    house.gate.send(true).expect("somebody waits");
    house.available(request, &OTHERS).await;
    assert_eq!(images::verify(&house.layout("one")), images::verify(&house.layout("home")));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_outlasts_its_lease_is_kept_alive() {
    let house = House::build(&[noise(50_000, 1)], Duration::from_secs(30), false).await;
    let request = house.synchronize().await;
    house.available(request, &["three", "two"]).await;
    // Twice the time after which another worker would claim the replica.
    tokio::time::sleep(LEASE * 2).await;
    house.gate.send(true).expect("somebody waits");
    let done = house.available(request, &OTHERS).await;
    assert_eq!(done.regions[0].attempt, 1, "nobody took it over: {done:?}");
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_joined_is_left_as_it_is() {
    let house = House::build(&[noise(50_000, 1)], Duration::from_secs(30), false).await;
    let first = house.synchronize().await;
    let before = house.available(first, &["three", "two"]).await;
    let second = house.synchronize().await;
    let joined = house.state.synchronization_get(second).await.expect("it is known");
    let [only] = &joined.regions[..] else { panic!("one region has not got it: {joined:?}") };
    let own = |view: &appferry::domain::RegionView| (view.region.clone(), view.status, view.attempt, view.started_at);
    assert_eq!(own(only), own(&before.regions[0]), "nothing is started anew");
    house.gate.send(true).expect("somebody waits");
    house.available(first, &OTHERS).await;
    let done = house.available(second, &["one"]).await;
    assert_eq!((done.state, done.regions[0].attempt), (SynchronizationState::Succeeded, 1));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_store_hangs_is_given_up_and_holds_nobody() {
    let (patience, stall) = (Duration::from_millis(100), Duration::from_millis(400));
    let house = House::build_with(&[noise(24 << 20, 1)], patience, stall, false).await;
    let request = house.synchronize().await;
    let done = until("the end", async || {
        let found = house.state.synchronization_get(request).await.expect("it is known");
        found.state.is_terminal().then_some(found)
    })
    .await;
    assert_eq!(done.state, SynchronizationState::Failed);
    for (region, status) in OTHERS.iter().zip([RegionStatus::Failed, RegionStatus::Available, RegionStatus::Available])
    {
        let view = done.regions.iter().find(|view| view.region == id(region)).expect("the region");
        assert_eq!(view.status, status, "{done:?}");
    }
    let fault = done.regions[0].fault.as_ref().expect("a reason");
    assert_eq!(fault.message.as_str(), "writing a blob took too long");
    house.stop().await;
}

/// A panic is an error of its region at once; the lease is not renewed forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_panics_fails_and_holds_no_other() {
    let house = House::build(&[noise(50_000, 1)], Duration::from_secs(30), true).await;
    house.panics.store(true, Ordering::Relaxed);
    let request = house.synchronize().await;
    let done = until("the end", async || {
        let found = house.state.synchronization_get(request).await.expect("it is known");
        found.state.is_terminal().then_some(found)
    })
    .await;
    let status = |region: &str| done.regions.iter().find(|view| view.region == id(region)).expect("the region").status;
    assert_eq!(status("one"), RegionStatus::Failed, "{done:?}");
    assert_eq!([status("two"), status("three")], [RegionStatus::Available; 2]);
    house.panics.store(false, Ordering::Relaxed);
    let again = house.synchronize().await;
    house.available(again, &["one"]).await;
    house.stop().await;
}

/// A region that is requested while its image is being copied joins the running fan-out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_comes_later_joins_the_copy_of_its_image() {
    // The remaining data after the other regions have joined fits into the queues: on a busy machine, no region may
    // lag.
    let layers: Vec<_> = (0..48).map(|seed| noise(50_000, seed)).collect();
    let blobs: u64 = layers.iter().map(|layer| layer.len() as u64).sum();
    let house = House::build(&layers, Duration::from_secs(30), true).await;
    let ask = |targets: &[&str]| Ask {
        request_id: RequestId::generate(),
        image: "a".parse().expect("an id"),
        targets: Targets::Named(targets.iter().map(|name| id(name)).collect()),
        principal: "p".into(),
        token: None,
        overwrite: false,
        trace: None,
    };
    house.held_after.store(blobs / 5, Ordering::Relaxed);
    let first = house.state.accept(ask(&["one"])).await.expect("it is accepted");
    until("a part of the image", async || (house.read.load(Ordering::Relaxed) >= blobs / 5).then_some(())).await;
    let second = house.state.accept(ask(&["two", "three"])).await.expect("it is accepted");
    until("the later copies", async || {
        let found = house.state.synchronization_get(second).await.expect("it is known");
        found.regions.iter().all(|view| view.status == RegionStatus::Copying && view.progress.total > 0).then_some(())
    })
    .await;
    house.source_gate.send(true).expect("somebody waits");
    house.available(first, &["one"]).await;
    house.available(second, &["two", "three"]).await;
    let read = house.read.load(Ordering::Relaxed);
    // A separate read for the later regions would double the number of bytes.
    assert!(read < blobs * 19 / 10, "{read} of {blobs} bytes were read: the later regions did not join");
    for region in OTHERS {
        images::verify(&house.layout(region));
    }
    house.stop().await;
}
