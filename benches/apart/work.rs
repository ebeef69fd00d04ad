//! The measured work: copying every image to two healthy regions and, if there is one, to the failing region.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use appferry::contract::v1::{RegionState, SynchronizeAppRequest, WatchSynchronizationRequest};
use sea_orm::ConnectionTrait as _;
use tokio::task::JoinSet;

use super::{
    Result,
    failure::{FailingStore, Failure},
    harness::{
        images::{self, noise},
        postgres::Postgres,
        process::{Served, Worker},
        registry::Registry,
        site::{ADMIN, AppSync, HOME, Site, TARGETS, app_sync, ask, images_client, register},
    },
};

/// The number of processes that copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    /// One process, on SQLite.
    One,
    /// A server with workers and two separate workers, on PostgreSQL.
    Three,
}

impl Processes {
    pub const ALL: [Self; 2] = [Self::One, Self::Three];

    fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Three => 3,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Three => "three",
        }
    }
}

/// The images to copy, written once as OCI layouts.
pub struct Images {
    pub load: Load,
    directory: tempfile::TempDir,
}

/// The number and size of the images, and the bandwidth of the home region. The bandwidth is low enough for the machine
/// to have idle time: the registry of a failing region that accepts all bytes before it hangs would otherwise compete
/// with the other registries for the processors.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub images: usize,
    /// Size of each image in bytes.
    pub size: usize,
    /// Total bandwidth of the home region in bytes per second.
    pub link: usize,
    /// Rounds for each of the two variants.
    pub rounds: usize,
}

impl Images {
    /// Writes the images, each with four layers.
    pub fn make(load: Load) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for n in 0..load.images {
            let layers: Vec<_> = (0..4).map(|part| noise(load.size / 4, (n * 4 + part) as u64)).collect();
            images::write(&directory.path().join(name(n)), &layers);
        }
        Ok(Self { load, directory })
    }
}

fn name(n: usize) -> String {
    format!("image-{n}")
}

/// The running processes. Field order matters: the failing store is dropped, and thereby repaired, first, because a
/// process that is blocked in the kernel exits only after that.
struct Running {
    _store: Option<FailingStore>,
    served: Served,
    workers: Vec<Worker>,
}

/// One variant of the measured work.
pub struct Work<'a> {
    pub images: &'a Images,
    pub healthy: &'a [Registry; 2],
    /// The registry behind the failing region, for failures that forward requests.
    pub behind: &'a Registry,
    pub processes: Processes,
    pub postgres: &'a Postgres,
}

impl Work<'_> {
    /// Returns the time from the first call until the healthy regions have every image.
    pub async fn time(&self, failure: Option<Failure>) -> Result<Duration> {
        static ROUND: AtomicUsize = AtomicUsize::new(0);
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("round-{round}");
        let store = match failure {
            Some(failure) => Some(failure.store(self.behind.address, &format!("failing-{round}")).await?),
            None => None,
        };
        let site = self.site(&namespace, store.as_ref(), round).await?;
        let served = site.serve().await;
        let config = site.config_file();
        let mut running = Running { _store: store, served, workers: Vec::new() };
        if self.processes == Processes::Three {
            for n in 0..2 {
                running
                    .workers
                    .push(Served::worker(&config, site.directory.path().join(format!("worker-{n}.log"))).await);
            }
        }
        let mut client = images_client(running.served.address, Some(ADMIN)).await;
        for n in 0..self.images.load.images {
            register(&mut client, &name(n)).await;
        }
        let targets = if failure.is_some() { TARGETS.to_vec() } else { TARGETS[1..].to_vec() };
        let client = app_sync(running.served.address, Some(ADMIN)).await;
        let started = Instant::now();
        let mut waiting = JoinSet::new();
        for n in 0..self.images.load.images {
            waiting.spawn(wait_for_healthy_regions(client.clone(), ask(&name(n), &targets)));
        }
        while let Some(done) = waiting.join_next().await {
            done??;
        }
        Ok(started.elapsed())
    }

    async fn site(&self, namespace: &str, failing: Option<&FailingStore>, round: usize) -> Result<Site> {
        let mut site = Site::new();
        // The store of the home region is the directory with the images.
        let link = format!("egress_bytes_per_second = {}", self.images.load.link / self.processes.count());
        site = site.with(HOME, format!("dir://{}", self.images.directory.path().display()), link);
        if let Some(failing) = failing {
            site = site.with(TARGETS[0], failing.url.clone(), "");
        }
        for (region, registry) in TARGETS[1..].iter().zip(self.healthy) {
            site = site.with(region, registry.store(namespace), "");
        }
        // Empty, so that workers run with the default settings, as users run them.
        "".clone_into(&mut site.worker);
        if self.processes == Processes::Three {
            let (db, name) =
                (sea_orm::Database::connect(self.postgres.url("postgres")).await?, format!("round_{round}"));
            db.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
            db.close().await?;
            site = site.on(&self.postgres.url(&name));
        }
        Ok(site)
    }
}

/// Requests an image and waits until the healthy regions have it.
async fn wait_for_healthy_regions(
    mut client: AppSync,
    call: SynchronizeAppRequest,
) -> std::result::Result<(), tonic::Status> {
    let request_id = client.synchronize_app(call).await?.into_inner().request_id;
    let mut watch = client.watch_synchronization(WatchSynchronizationRequest { request_id }).await?.into_inner();
    while let Some(message) = watch.message().await? {
        let regions = message.synchronization.unwrap_or_default().regions;
        let mut healthy = regions.iter().filter(|region| TARGETS[1..].contains(&region.region_id.as_str()));
        if healthy.all(|region| region.state() == RegionState::Available) {
            return Ok(());
        }
    }
    Err(tonic::Status::internal("the watch ended before the healthy regions had the image"))
}
