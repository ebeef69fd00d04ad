//! Tests that run on every supported database. Each test has its own database. A "process" in these tests is a `Db`
//! with its own connections and tasks.

/// Generates one test per function and database.
macro_rules! on_every_database {
    ($($test:ident)*) => {
        on_every_database!(@on sqlite Sqlite $($test)*);
        on_every_database!(@on postgres Postgres $($test)*);
        on_every_database!(@on mysql MySql $($test)*);
    };
    (@on $module:ident $kind:ident $($test:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if crate::harness::database::Kind::$kind.is_available() {
                        super::$test(crate::harness::database::Kind::$kind).await;
                    }
                }
            )*
        }
    };
}

mod clock;
mod interrupted;
mod lists;
mod maintenance;
mod names;
mod queue;
mod readiness;
mod regions;
mod removal;
mod requests;
mod schema;
mod unresponsive;
mod warnings;

use std::{collections::BTreeMap, time::Duration};

use appferry::{
    db::{Claim, ClaimRequest, Db, LaneCapacity, NewSynchronization, PageRange, Report, Settings, Tasks},
    domain::{
        ClientToken, Content, Descriptor, Digest, Event, Image, ImageId, ImageKind, ImageName, Progress, RegionId,
        RegionStatus, Regions, RequestId, Stale, Synchronization, Targets, Verification, Warnings, WorkerId,
    },
};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    database::{self, Kind},
    history,
};

/// The duration of a lease that does not expire during a test.
const LEASE: Duration = Duration::from_secs(600);
/// The duration of a lease that expires during a test.
const SHORT: Duration = Duration::from_millis(200);

/// A page of the first three entries.
const THREE: PageRange = PageRange { skip: 0, limit: 3 };

/// A database, and the processes that a test has started on it.
struct Fixture {
    directory: tempfile::TempDir,
    url: String,
    stop: CancellationToken,
    tasks: Vec<Tasks>,
}

impl Fixture {
    async fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = database::fresh(kind, directory.path()).await;
        history::record(&url).await;
        Self { directory, url, stop: CancellationToken::new(), tasks: Vec::new() }
    }

    async fn process(&mut self) -> Db {
        self.process_with(|settings| settings).await
    }

    async fn process_with(&mut self, change: impl FnOnce(Settings) -> Settings) -> Db {
        let settings = change(Settings::new(self.url.clone()));
        let (state, tasks) = Db::open(&settings, regions(), self.stop.clone()).await.expect("it opens");
        self.tasks.push(tasks);
        state
    }

    async fn process_with_regions(&mut self, regions: Regions) -> Db {
        let (state, tasks) =
            Db::open(&Settings::new(self.url.clone()), regions, self.stop.clone()).await.expect("it opens");
        self.tasks.push(tasks);
        state
    }

    /// Stops every process, and returns the directory and the URL of the database.
    async fn stop(self) -> (tempfile::TempDir, String) {
        self.stop.cancel();
        for tasks in self.tasks {
            tasks.join().await;
        }
        (self.directory, self.url)
    }

    /// Stops every process, and checks that the recorded history contains only valid transitions.
    async fn end(self) {
        let (directory, url) = self.stop().await;
        let replayed = history::replay(&url, &[LEASE, SHORT]).await;
        println!("{replayed:?}");
        drop(directory);
    }
}

const DONE: Progress = Progress { total: 1_000, copied: 900, skipped: 100 };

fn region(name: &str) -> RegionId {
    name.parse().expect("an id")
}

fn image_id(name: &str) -> ImageId {
    name.parse().expect("an id")
}

fn regions() -> Regions {
    Regions::new(region("home"), ["one", "two", "three"].map(region))
}

fn image(id: &str) -> Image {
    Image {
        id: image_id(id),
        name: "gromacs".into(),
        version: "2026.1".into(),
        description: "äöü \u{1F6A2} 'quoted' \\ and \"more\"".into(),
        kind: ImageKind::Vm,
        source: ImageName("n".into()),
        home: region("home"),
        content: Content::Blobs(Descriptor { media_type: "m".into(), digest: Digest::Sha256([7; 32]), size: 5 }),
        size: 1_000,
        created_at: appferry::system_clock().now(),
        superseded_by: None,
        absent: Vec::new(),
    }
}

async fn add(state: &Db, id: &str) -> ImageId {
    let image = image(id);
    state.image_add(&image).await.expect("it is added");
    image.id
}

fn ask(image: &ImageId, targets: &[&str]) -> NewSynchronization {
    let named = || Targets::Named(targets.iter().map(|name| region(name)).collect());
    NewSynchronization {
        request_id: appferry::new_request_id(),
        image: image.clone(),
        targets: if targets.is_empty() { Targets::All } else { named() },
        principal: "acs:ram::1:user/a".into(),
        overwrite: false,
        token: None,
        trace: None,
    }
}

fn with_token(ask: NewSynchronization, token: &str) -> NewSynchronization {
    NewSynchronization { token: Some(token.parse::<ClientToken>().expect("a token")), ..ask }
}

fn worker(name: &str) -> WorkerId {
    WorkerId(name.into())
}

/// Claims replicas of up to `images` images in all regions, without limits on copies.
async fn claim(state: &Db, owner: &str, images: usize) -> Vec<Claim> {
    claim_within(state, owner, images, LEASE, &BTreeMap::new(), 0).await
}

async fn claim_within(
    state: &Db,
    owner: &str,
    images: usize,
    lease: Duration,
    limits: &BTreeMap<RegionId, usize>,
    draw: usize,
) -> Vec<Claim> {
    let lanes =
        ["one", "two", "three"].map(|name| (region(name), LaneCapacity { primary: images, total: usize::MAX })).into();
    let order = ClaimRequest { owner: &worker(owner), lanes: &lanes, lease, limits, draw };
    state.replica_claim(order).await.expect("it can be claimed")
}

async fn verify(state: &Db, image: &ImageId, to: &RegionId, fence: u64) -> Result<(), Stale> {
    let report = Report {
        region: to.clone(),
        event: Event::Verified {
            fence,
            progress: DONE,
            verification: Verification::Verified,
            warnings: Warnings::default(),
        },
    };
    state.replica_report(image, report).await.expect("it can be reported")
}

async fn get(state: &Db, id: RequestId) -> Synchronization {
    state.synchronization_get(id).await.expect("it is known")
}

fn status(synchronization: &Synchronization, of: &str) -> RegionStatus {
    synchronization.regions.iter().find(|view| view.region.as_str() == of).expect("the region").status
}
