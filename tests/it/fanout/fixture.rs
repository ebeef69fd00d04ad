//! A worker with a home region and three target regions, in this process.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use appferry::{
    db::{Db, NewSynchronization, Settings as StateSettings, Tasks, migrate},
    domain::{
        Backoff, Content, Image, ImageKind, ImageName, RegionId, RegionStatus, Regions, RequestId, Synchronization,
        SynchronizationState, Targets, WorkerId, relay::Topology,
    },
    storage::{Backend, DirStore, ManifestGraph, Store, Stores},
    worker::{Settings, Worker},
};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::observed_store::{ObservedStore, Writing};
use crate::harness::{database, images, until};

pub const LEASE: Duration = Duration::from_secs(2);
pub const OTHERS: [&str; 3] = ["one", "three", "two"];

/// A database, a worker, and the stores of four regions.
pub struct Fixture {
    pub directory: tempfile::TempDir,
    pub state: Db,
    state_tasks: Tasks,
    worker: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    /// Number of blob bytes read from the home region.
    pub read: Arc<AtomicU64>,
    /// Counts of blob writes to region `one`.
    pub writing: Arc<Writing>,
    /// Opens the gate of region `one`'s writers.
    pub gate: watch::Sender<bool>,
    /// Makes the store of region `one` panic.
    pub panics: Arc<AtomicBool>,
    /// The number of bytes after which reads of the home region block.
    pub held_after: Arc<AtomicU64>,
    /// Opens the gate that releases blocked reads of the home region.
    pub source_gate: watch::Sender<bool>,
}

pub fn id(name: &str) -> RegionId {
    name.parse().expect("an id")
}

impl Fixture {
    pub async fn build(layers: &[Vec<u8>], patience: Duration, gate_open: bool) -> Self {
        Self::build_with(layers, patience, Duration::from_secs(60), gate_open).await
    }

    pub async fn build_with(layers: &[Vec<u8>], patience: Duration, stall: Duration, gate_open: bool) -> Self {
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
            (id(region), Arc::new(ObservedStore { store, read, open, writing, panics, held_after, source_open }))
        };
        let stores = Stores::new(["home"].into_iter().chain(OTHERS).map(observed));
        images::write(&directory.path().join("home/a"), layers);

        let settings = StateSettings::new(format!("sqlite://{}/state.db", directory.path().display()));
        migrate(&settings).await.expect("the schema");
        let stop = CancellationToken::new();
        let regions = Regions::new(id("home"), OTHERS.map(id));
        let (state, state_tasks) = Db::open(&settings, regions, stop.clone()).await.expect("it opens");
        let name = ImageName("a".into());
        let home = stores.get(&id("home")).expect("the home region");
        let root = home.root(&name).await.expect("it is there").expect("it is there");
        let size = ManifestGraph::read(&**home, &name, &root, &[]).await.expect("it is whole").size();
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
            created_at: appferry::system_clock().now(),
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

    pub async fn synchronize(&self) -> RequestId {
        let ask = NewSynchronization {
            request_id: appferry::new_request_id(),
            image: "a".parse().expect("an id"),
            targets: Targets::All,
            principal: "p".into(),
            overwrite: false,
            token: None,
            trace: None,
        };
        self.state.accept(ask).await.expect("it is accepted")
    }

    /// Returns when the lease on a region expires, in milliseconds by the database's clock.
    pub async fn lease_of(&self, region: &str) -> i64 {
        let db = database::look(&format!("sqlite://{}/state.db", self.directory.path().display())).await;
        let sql = format!("SELECT due_at FROM replica WHERE region_id = '{region}'");
        let row = db.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.expect("it answers");
        let due = row.expect("a row").try_get("", "due_at").expect("a number");
        db.close().await.expect("it is closed");
        due
    }

    /// Waits until these regions have the image. Returns the synchronization, which includes all regions.
    pub async fn available(&self, request: RequestId, regions: &[&str]) -> Synchronization {
        until("the image", async || {
            let synchronization = self.state.synchronization_get(request).await.expect("it is known");
            assert_ne!(synchronization.state, SynchronizationState::Failed, "{synchronization:?}");
            let is_available = |region: &&str| {
                let view = synchronization.regions.iter().find(|view| view.region == id(region)).expect("the region");
                view.status == RegionStatus::Available
            };
            regions.iter().all(is_available).then_some(synchronization)
        })
        .await
    }

    pub fn layout(&self, region: &str) -> PathBuf {
        self.directory.path().join(region).join("a")
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.worker.await.expect("no panic");
        self.state_tasks.join().await;
    }
}
