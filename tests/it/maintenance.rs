//! The leader's maintenance: an unresponsive store delays only the maintenance of its own region.

use std::{collections::BTreeMap, time::Duration};

use appferry::{
    db::{self, Claim, ClaimRequest, Db, LaneCapacity, NewSynchronization},
    domain::{
        Backoff, Content, Descriptor, Digest, Event, Image, ImageId, ImageKind, ImageName, RegionId, RegionStatus,
        Regions, RequestId, Targets, WorkerId,
    },
    storage::{
        Backend, Credentials, Location, MANIFEST_TYPE, RegistryClient, RegistryStore, Store, Stores, ssrf_guard::Guard,
    },
    worker::{Maintenance, MaintenanceSettings, STRAY_UPLOADS},
};
use http::{Method, StatusCode};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    proxy::{Action, Proxy},
    resumable_registry::ResumableRegistry,
    until,
};

/// The regions, in the order in which a sequential implementation would visit them.
const SILENT: &str = "a-silent";
const HEALTHY: &str = "b-healthy";

fn region(name: &str) -> RegionId {
    name.parse().expect("an id")
}

fn store(proxy: &Proxy) -> std::sync::Arc<dyn Store> {
    let Ok(Location::Registry(location)) = proxy.store("apps").parse() else { panic!("a registry") };
    let client = RegistryClient::new(location, Credentials::Anonymous, Vec::new(), None, Guard::new(true));
    std::sync::Arc::new(RegistryStore::new(client.expect("a client")))
}

fn image(id: &str) -> Image {
    let root = Descriptor { media_type: MANIFEST_TYPE.into(), digest: Digest::Sha256([7; 32]), size: 10 };
    Image {
        id: id.parse().expect("an id"),
        name: id.into(),
        version: String::new(),
        description: String::new(),
        kind: ImageKind::Vm,
        source: ImageName(id.into()),
        home: region("home"),
        content: Content::Blobs(root),
        superseded_by: None,
        absent: Vec::new(),
        size: 10,
        created_at: appferry::system_clock().now(),
    }
}

/// A database without a leader.
struct Fixture {
    _directory: tempfile::TempDir,
    state: Db,
    tasks: db::Tasks,
    stop: CancellationToken,
}

impl Fixture {
    async fn open() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = db::Settings::new(format!("sqlite://{}/state.db", directory.path().display()));
        db::migrate(&settings).await.expect("the schema");
        let stop = CancellationToken::new();
        let regions = Regions::new(region("home"), [SILENT, HEALTHY].map(region));
        let (state, tasks) = Db::open(&settings, regions, stop.clone()).await.expect("it opens");
        Self { _directory: directory, state, tasks, stop }
    }

    /// Claims an image for both regions, with the given lease.
    async fn claimed(&self, id: &str, lease: Duration) -> (RequestId, Claim) {
        self.state.image_add(&image(id)).await.expect("it is added");
        let ask = NewSynchronization {
            request_id: appferry::new_request_id(),
            image: id.parse().expect("an id"),
            targets: Targets::All,
            principal: "p".into(),
            token: None,
            overwrite: false,
            trace: None,
        };
        let request = self.state.accept(ask).await.expect("it is accepted");
        let lanes = [SILENT, HEALTHY].map(|name| (region(name), LaneCapacity { primary: 9, total: 9 })).into();
        let owner = WorkerId("w".into());
        let order = ClaimRequest { owner: &owner, lanes: &lanes, lease, limits: &BTreeMap::new(), draw: 0 };
        (request, self.state.replica_claim(order).await.expect("it can be claimed").remove(0))
    }

    async fn abandoned(&self, name: &str) -> usize {
        self.state.upload_abandoned(&region(name)).await.expect("it answers").len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_delays_neither_other_stores_nor_rescue_nor_shutdown() {
    let registry = ResumableRegistry::start().await;
    let silent = Proxy::start(registry.address, |_| Action::Hang).await;
    let healthy = Proxy::start(registry.address, |_| Action::Pass).await;
    let fixture = Fixture::open().await;

    // Leaves uploads of canceled copies in both regions.
    for n in 0..3 {
        let (request, claim) = fixture.claimed(&format!("canceled-{n}"), Duration::from_secs(600)).await;
        for claimed in &claim.regions {
            let proxy = if claimed.region == region(SILENT) { &silent } else { &healthy };
            let url = format!("http://{}/v2/apps/images/blobs/uploads/{n}", proxy.address);
            let session = serde_json::json!({ "repository": "apps/images", "url": url }).to_string();
            let noted =
                fixture.state.upload_save(&claim.id, &claimed.region, claimed.fence, Digest::Sha256([n; 32]), &session);
            noted.await.expect("it answers").expect("it is in time");
        }
        fixture.state.synchronization_cancel(request).await.expect("it is canceled");
    }
    // Claims an image with a short lease, like a worker that dies.
    let (orphan, claim) = fixture.claimed("orphan", Duration::from_millis(50)).await;
    let fence = claim.regions.iter().find(|claimed| claimed.region == region(HEALTHY)).expect("the region").fence;

    let stores = Stores::new([(region(SILENT), store(&silent)), (region(HEALTHY), store(&healthy))]);
    let settings = MaintenanceSettings {
        id: WorkerId("leader".into()),
        interval: Duration::from_millis(50),
        keep: Duration::from_secs(600),
        locations: Vec::new(),
        lease: Duration::from_secs(600),
        stray_uploads: STRAY_UPLOADS,
    };
    let maintenance = Maintenance::new(fixture.state.clone(), Backend::Stores(stores), settings);
    let running = tokio::spawn(maintenance.run(fixture.stop.clone()));
    until("the uploads of the healthy region", async || (fixture.abandoned(HEALTHY).await == 0).then_some(())).await;
    until("the requeuing of the orphan", async || {
        let synchronization = fixture.state.synchronization_get(orphan).await.expect("it is known");
        synchronization.regions.iter().all(|view| view.status == RegionStatus::Pending).then_some(())
    })
    .await;
    assert_eq!(fixture.abandoned(SILENT).await, 3, "they are retried when it answers");
    let id: ImageId = "orphan".parse().expect("an id");
    let late = db::Report { region: region(HEALTHY), event: Event::Release { fence } };
    fixture.state.replica_report(&id, late).await.expect("it answers").expect_err("its fence was raised");

    fixture.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await.expect("it stops").expect("no panic");
    fixture.tasks.join().await;
}

/// An upload that a store never aborts is tried a few times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_never_aborted_is_given_up_in_the_end() {
    let registry = ResumableRegistry::start().await;
    let refusing =
        Proxy::start(registry.address, |_| Action::Answer(StatusCode::UNAUTHORIZED, Vec::new(), String::new())).await;
    let fixture = Fixture::open().await;
    let url = format!("http://{}/v2/apps/images/blobs/uploads/7", refusing.address);
    let session = serde_json::json!({ "repository": "apps/images", "url": url }).to_string();
    fixture.state.stray_upload_note(&region(HEALTHY), &session).await.expect("it answers");
    let stores = Stores::new([(region(HEALTHY), store(&refusing))]);
    let wait = Duration::from_millis(1);
    let settings = MaintenanceSettings {
        id: WorkerId("leader".into()),
        interval: Duration::from_millis(50),
        keep: Duration::from_secs(600),
        locations: Vec::new(),
        lease: Duration::from_secs(600),
        stray_uploads: Backoff { first: wait, longest: wait, attempts: 3 },
    };
    let maintenance = Maintenance::new(fixture.state.clone(), Backend::Stores(stores), settings);
    let running = tokio::spawn(maintenance.run(fixture.stop.clone()));
    let tries = || refusing.requests().iter().filter(|seen| seen.method == Method::DELETE).count();
    until("the last try", async || (tries() >= 3).then_some(())).await;
    until("it to be forgotten", async || {
        let due =
            fixture.state.stray_uploads_due(&region(HEALTHY), Duration::from_secs(3_600)).await.expect("it answers");
        due.is_empty().then_some(())
    })
    .await;
    fixture.stop.cancel();
    running.await.expect("no panic");
    fixture.tasks.join().await;
    assert_eq!(tries(), 3);
}
