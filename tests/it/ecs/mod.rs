//! Regions of Alibaba Cloud, whose images ECS copies: the requests, the progress, and every failure.

mod credentials;
mod many_regions;
mod official_client;

use std::{collections::BTreeSet, fs, time::Duration};

use appferry::contract::v1::{
    AddImageRequest, CancelSynchronizationRequest, ContainerImageSpec, ErrorCode, GetImageRequest, Image, ImageType,
    Intactness, RegionState, RegionSynchronization, Synchronization, SynchronizationState, VerifyImageRequest,
    VmImageSpec, WatchSynchronizationRequest, add_image_request, error_detail::Reason,
};
use tokio_stream::StreamExt as _;

use crate::harness::{
    ecs::{Ecs, InjectedFault, KEY, provider::Status},
    refusal,
    site::{HOME, Running, Site},
    until,
};

const REGIONS: [&str; 3] = [HOME, "cn-beijing", "cn-shanghai"];
/// The image's name in its home region.
const NAME: &str = "gromacs-2026.1";

/// Returns a site whose regions are the emulated provider's.
pub fn site(ecs: &Ecs, regions: &[&'static str]) -> Site {
    let mut site = Site::new();
    let secret = site.directory.path().join("secret");
    fs::write(&secret, KEY[1]).expect("a secret");
    site.ecs = regions.to_vec();
    site.more =
        section(ecs, &format!("access_key_id = \"{}\"\naccess_key_secret_file = \"{}\"", KEY[0], secret.display()));
    site
}

/// Returns the configuration section with these credentials.
fn section(ecs: &Ecs, credentials: &str) -> String {
    let at = format!("http://{}", ecs.address);
    format!(
        "[alibaba]\n{credentials}\nendpoint = \"{at}\"\nsts_endpoint = \"{at}\"\ntimeout_ms = 400\npoll_ms = 30\n\
         settle_ms = 1500\n"
    )
}

/// An emulated provider with three regions and an image, and a service that uses it.
struct Fixture {
    ecs: Ecs,
    running: Running,
    source: String,
}

impl Fixture {
    async fn build(takes: Duration) -> Self {
        let ecs = Ecs::start(&REGIONS, takes).await;
        let source = ecs.provider().put(HOME, NAME, &[]);
        let running = site(&ecs, &REGIONS).start().await;
        let fixture = Self { ecs, running, source };
        fixture.add("app").await;
        fixture
    }

    async fn add(&self, id: &str) {
        let request = vm(id, &self.source);
        self.running.images().await.add_image(request).await.expect("it is registered");
    }

    /// Synchronizes the image and waits until the synchronization has ended.
    async fn carry(&self, regions: &[&str]) -> Synchronization {
        let request = self.running.synchronize("app", regions).await.expect("it is accepted");
        self.running.finished(&request).await
    }

    async fn image(&self) -> Image {
        let request = GetImageRequest { image_id: "app".to_owned(), ..Default::default() };
        let response = self.running.images().await.get_image(request).await.expect("it is there");
        response.into_inner().image.expect("an image")
    }

    /// Returns the image's id and state in a region, as the service reports them.
    async fn shown(&self, region: &str) -> (String, RegionState) {
        let image = self.image().await;
        let info = image.additional_regions_info.iter().find(|info| info.region_id == region).expect("the region");
        (info.image_id.clone(), info.status())
    }
}

pub fn vm(id: &str, source: &str) -> AddImageRequest {
    AddImageRequest {
        name: "gromacs".to_owned(),
        image_type: ImageType::Vm.into(),
        image_spec: Some(add_image_request::ImageSpec::VmImageSpec(VmImageSpec { image_id: source.to_owned() })),
        image_id: id.to_owned(),
        ..Default::default()
    }
}

fn region<'s>(of: &'s Synchronization, id: &str) -> &'s RegionSynchronization {
    of.regions.iter().find(|region| region.region_id == id).expect("the region")
}

/// Returns the code and the message of a region's failure.
fn failure(of: &Synchronization, id: &str) -> (ErrorCode, String) {
    let region = region(of, id);
    assert_eq!(region.state(), RegionState::Failed, "{region:?}");
    let error = region.error.as_ref().expect("an error");
    assert_eq!(error.region_ids, [id]);
    let Some(Reason::Code(code)) = error.reason else { panic!("{error:?}") };
    (ErrorCode::try_from(code).expect("a code"), error.message.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_copied_by_ecs_and_known_by_its_id_there() {
    let fixture = Fixture::build(Duration::from_millis(700)).await;
    let image = fixture.image().await;
    assert_eq!((image.size_bytes, image.digest.as_str(), image.image_type()), (40 << 30, "", ImageType::Vm));
    assert_eq!(fixture.shown(HOME).await, (fixture.source.clone(), RegionState::Available));
    assert_eq!(fixture.shown("cn-beijing").await, (String::new(), RegionState::Unspecified));

    let request = fixture.running.synchronize("app", &[]).await.expect("it is accepted");
    let watched = WatchSynchronizationRequest { request_id: request.clone() };
    let stream = fixture.running.app_sync().await.watch_synchronization(watched).await.expect("it can be watched");
    let seen: Vec<_> = stream.into_inner().map(|m| m.expect("a message").synchronization.expect("one")).collect().await;
    let bytes: BTreeSet<i64> = seen.iter().map(|snapshot| region(snapshot, "cn-beijing").bytes_copied).collect();
    assert!(bytes.iter().any(|copied| (1..40 << 30).contains(copied)), "its progress is seen: {bytes:?}");
    let done = seen.last().expect("an end");
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");

    for to in &REGIONS[1..] {
        let made = fixture.ecs.provider().images(to);
        assert_eq!(made.len(), 1, "{made:?}");
        assert_eq!((made[0].name.as_str(), made[0].status), (NAME, Status::Available));
        let tags = [("appferry:app-id", "app"), ("appferry:source-image-id", &fixture.source)];
        assert_eq!(made[0].tags, tags.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(fixture.shown(to).await, (made[0].id.clone(), RegionState::Available));
        let region = region(done, to);
        assert_eq!((region.bytes_total, region.bytes_copied, region.bytes_skipped), (40 << 30, 40 << 30, 0));
        assert_eq!(fixture.ecs.count("CopyImage", Some(to), "OK"), 1);
    }
    // As with every kind of region, a second call has nothing left to do.
    assert_eq!(fixture.carry(&[]).await.state(), SynchronizationState::Succeeded);
    assert_eq!(fixture.ecs.count("CopyImage", None, "OK"), 2);
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_that_name_is_adopted_if_it_is_ours_and_reported_if_not() {
    let fixture = Fixture::build(Duration::from_millis(100)).await;
    let tags = [("appferry:app-id", "app"), ("appferry:source-image-id", fixture.source.as_str())];
    // ECS also matches names that contain the requested name.
    fixture.ecs.provider().put("cn-beijing", "old-gromacs-2026.1", &[]);
    let ours = fixture.ecs.provider().put("cn-beijing", NAME, &tags);
    let theirs = fixture.ecs.provider().put("cn-shanghai", NAME, &[("appferry:app-id", "another")]);

    let done = fixture.carry(&[]).await;
    assert_eq!(region(&done, "cn-beijing").state(), RegionState::Available, "{done:?}");
    assert_eq!(region(&done, "cn-beijing").bytes_skipped, 40 << 30);
    assert_eq!(fixture.shown("cn-beijing").await.0, ours);
    let (code, message) = failure(&done, "cn-shanghai");
    assert_eq!(code, ErrorCode::EcsError);
    assert!(message.contains(&theirs) && message.contains(NAME), "{message}");
    assert_eq!(fixture.ecs.count("CopyImage", None, "OK"), 0);
    assert_eq!(fixture.ecs.count("DeleteImage", None, "OK") + fixture.ecs.count("CancelCopyImage", None, "OK"), 0);

    // Once that image is renamed, the next call copies.
    fixture.ecs.provider().change("cn-shanghai", |images| images[0].name = "something-else".to_owned());
    assert_eq!(fixture.carry(&[]).await.state(), SynchronizationState::Succeeded);
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_makes_no_second_image() {
    let fixture = Fixture::build(Duration::from_millis(100)).await;
    fixture.ecs.inject("CopyImage", "cn-beijing", InjectedFault::Hang, 1);
    fixture.ecs.inject("CopyImage", "cn-shanghai", InjectedFault::CutAfter, 2);
    fixture.ecs.inject("DescribeImages", "cn-beijing", InjectedFault::Cut, 2);
    // A new image is listed with a delay.
    fixture.ecs.provider().lag = Duration::from_millis(800);
    let done = fixture.carry(&[]).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    for to in &REGIONS[1..] {
        assert_eq!(fixture.ecs.provider().images(to).len(), 1);
        assert_eq!(region(&done, to).attempt, 1, "it passed within the attempt");
    }
    assert!(fixture.ecs.count("CopyImage", Some("cn-shanghai"), "OK") >= 2, "it was repeated, with the same token");
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_by_what_is_not_listed_is_waited_for_and_then_reported() {
    let fixture = Fixture::build(Duration::from_millis(100)).await;
    fixture.ecs.inject("CopyImage", "cn-beijing", InjectedFault::Refuse(400, "InvalidImageName.Duplicated", None), 3);
    fixture.ecs.inject(
        "CopyImage",
        "cn-shanghai",
        InjectedFault::Refuse(400, "InvalidImageName.Duplicated", None),
        1_000,
    );
    let done = fixture.carry(&[]).await;
    assert_eq!(region(&done, "cn-beijing").state(), RegionState::Available, "{done:?}");
    let (code, message) = failure(&done, "cn-shanghai");
    assert!(code == ErrorCode::EcsError && message.contains("InvalidImageName.Duplicated"), "{message}");
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_ends_badly_is_cleared_away_and_made_anew() {
    let fixture = Fixture::build(Duration::from_millis(100)).await;
    fixture.ecs.provider().failing.insert("cn-beijing".to_owned(), 1);
    fixture.ecs.provider().failing.insert("cn-shanghai".to_owned(), 1_000);
    let done = fixture.carry(&[]).await;
    assert_eq!(region(&done, "cn-beijing").state(), RegionState::Available, "{done:?}");
    assert_eq!(region(&done, "cn-beijing").attempt, 2);
    let made = fixture.ecs.provider().images("cn-beijing");
    assert_eq!((made.len(), made[0].status), (1, Status::Available), "{made:?}");
    let (code, message) = failure(&done, "cn-shanghai");
    assert!(code == ErrorCode::EcsError && message.contains("CreateFailed"), "{message}");
    assert_eq!(region(&done, "cn-shanghai").attempt, 3);
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_canceled_is_given_up_at_the_provider() {
    let fixture = Fixture::build(Duration::from_secs(600)).await;
    // The image cannot be found by its name yet, so its id must be remembered.
    fixture.ecs.provider().lag = Duration::from_secs(600);
    let request = fixture.running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    let copying = async || (fixture.ecs.provider().images("cn-beijing").len() == 1).then_some(());
    until("a copy", copying).await;
    let canceled = CancelSynchronizationRequest { request_id: request.clone() };
    fixture.running.app_sync().await.cancel_synchronization(canceled).await.expect("it is canceled");
    until("the end", async || fixture.ecs.provider().images("cn-beijing").is_empty().then_some(())).await;
    assert_eq!(fixture.ecs.count("CancelCopyImage", Some("cn-beijing"), "OK"), 1);
    assert_eq!(fixture.running.finished(&request).await.state(), SynchronizationState::Canceled);

    // Another call starts a new copy.
    fixture.ecs.provider().lag = Duration::ZERO;
    fixture.ecs.provider().takes = Duration::from_millis(50);
    assert_eq!(fixture.carry(&["cn-beijing"]).await.state(), SynchronizationState::Succeeded);
    assert_eq!(fixture.ecs.provider().images("cn-beijing").len(), 1);
    fixture.running.stop().await;
}

/// The call of a copy was canceled while the service was down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_nobody_watches_any_more_is_given_up_by_whoever_keeps_house() {
    let ecs = Ecs::start(&REGIONS, Duration::from_secs(600)).await;
    let source = ecs.provider().put(HOME, NAME, &[]);
    // The worker cannot cancel the copy, because the provider fails.
    ecs.inject("CancelCopyImage", "cn-beijing", InjectedFault::Refuse(503, "ServiceUnavailable", None), 2);
    let mut site = site(&ecs, &REGIONS);
    site.more += "[housekeeping]\ninterval_ms = 100\n";
    let running = site.start().await;
    running.images().await.add_image(vm("app", &source)).await.expect("it is registered");
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    until("a copy", async || (ecs.provider().images("cn-beijing").len() == 1).then_some(())).await;
    let canceled = CancelSynchronizationRequest { request_id: request };
    running.app_sync().await.cancel_synchronization(canceled).await.expect("it is canceled");
    until("the end", async || ecs.provider().images("cn-beijing").is_empty().then_some(())).await;
    assert_eq!(ecs.count("CancelCopyImage", Some("cn-beijing"), "ServiceUnavailable"), 2);
    running.stop().await;
}

/// One process stops, and another continues to watch the same copy, long before the lease expires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_handed_over_when_its_process_stops() {
    let ecs = Ecs::start(&REGIONS, Duration::from_secs(2)).await;
    let source = ecs.provider().put(HOME, NAME, &[]);
    let mut site = site(&ecs, &REGIONS);
    site.worker = "lease_ms = 600000\nheartbeat_ms = 100".to_owned();
    let running = site.start().await;
    running.images().await.add_image(vm("app", &source)).await.expect("it is registered");
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    until("a copy", async || (ecs.count("CopyImage", None, "OK") == 1).then_some(())).await;
    let running = running.stop().await.start().await;
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert_eq!(region(&done, "cn-beijing").attempt, 1, "a released claim is no attempt");
    assert_eq!(ecs.count("CopyImage", None, "OK"), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_is_waited_for_as_long_as_it_says() {
    let fixture = Fixture::build(Duration::from_millis(100)).await;
    fixture.ecs.inject("CopyImage", "cn-beijing", InjectedFault::Refuse(400, "Throttling.User", Some(1)), 2);
    let done = fixture.carry(&["cn-beijing"]).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert_eq!(region(&done, "cn-beijing").attempt, 1, "throttling costs no attempt");
    let provider = fixture.ecs.provider();
    let at: Vec<_> = provider.calls.iter().filter(|call| call.action == "CopyImage").map(|call| call.at).collect();
    assert_eq!(at.len(), 3);
    for pair in at.windows(2) {
        assert!(pair[1] >= pair[0] + Duration::from_secs(1), "{at:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_pass_fails_at_once_with_what_the_provider_said() {
    let fixture = Fixture::build(Duration::from_millis(100)).await;
    fixture.ecs.inject("CopyImage", "cn-beijing", InjectedFault::Refuse(400, "QuotaExceed.Image", None), 1_000);
    fixture.ecs.inject("CopyImage", "cn-shanghai", InjectedFault::Refuse(403, "Forbidden.RAM", None), 1_000);
    let done = fixture.carry(&[]).await;
    for (to, code) in [("cn-beijing", "QuotaExceed.Image"), ("cn-shanghai", "Forbidden.RAM")] {
        let (row, message) = failure(&done, to);
        assert_eq!(row, ErrorCode::EcsError);
        for part in ["ECS CopyImage", code, "It was planned.", "RequestId"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(fixture.ecs.count("CopyImage", Some(to), code), 1, "it was not tried again");
        assert_eq!(region(&done, to).attempt, 1);
    }
    // A missing source is not the provider's error.
    fixture.ecs.provider().change(HOME, Vec::clear);
    fixture.ecs.provider().planned_faults.clear();
    let (row, message) = failure(&fixture.carry(&["cn-beijing"]).await, "cn-beijing");
    assert!(row == ErrorCode::ImageNotFound && message.contains(&fixture.source), "{message}");
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_copied_is_refused_when_it_is_registered() {
    let fixture = Fixture::build(Duration::from_millis(100)).await;
    let coming = fixture.ecs.provider().put(HOME, "coming", &[]);
    fixture.ecs.provider().change(HOME, |images| images[1].status = Status::Waiting);
    fixture.ecs.provider().takes = Duration::from_secs(600);
    let spec = ContainerImageSpec { registry_url: "docker://r/a:b".to_owned() };
    let container = AddImageRequest {
        image_type: ImageType::Container.into(),
        image_spec: Some(add_image_request::ImageSpec::ContainerImageSpec(spec)),
        ..vm("c", "")
    };
    for (request, code, part) in [
        (vm("a", "win2019_64"), "InvalidParams", "vm_image_spec.image_id"),
        (vm("a", "m-nobodyknowsit"), "ImageNotFound", "m-nobodyknowsit"),
        (vm("a", &coming), "EcsError", "is Creating and not Available"),
        (container, "InvalidParams", "container_image_spec.registry_url"),
    ] {
        let status = fixture.running.images().await.add_image(request).await.expect_err("it is refused");
        let refusal = refusal::read(&status);
        assert!(refusal.reason == code && format!("{status:?}").contains(part), "{code}: {status:?}");
    }
    fixture.ecs.inject("DescribeImages", HOME, InjectedFault::Refuse(403, "Forbidden.RAM", None), 1);
    let status = fixture.running.images().await.add_image(vm("a", &coming)).await.expect_err("it is refused");
    assert!(status.message().contains("ECS DescribeImages: Forbidden.RAM"), "{status:?}");
    fixture.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_gone_is_found_out_and_copied_again() {
    let fixture = Fixture::build(Duration::from_millis(50)).await;
    assert_eq!(fixture.carry(&[]).await.state(), SynchronizationState::Succeeded);
    let before = fixture.shown("cn-beijing").await.0;
    fixture.ecs.provider().change("cn-beijing", Vec::clear);
    let verify = async || {
        let request = VerifyImageRequest { image_id: "app".to_owned(), region_ids: Vec::new() };
        let stream = fixture.running.images().await.verify_image(request).await.expect("it answers").into_inner();
        let results: Vec<_> = stream.map(|results| results.expect("a region")).collect().await;
        results.iter().map(|results| (results.region_id.clone(), results.intactness())).collect::<Vec<_>>()
    };
    let results = |beijing| {
        let all = [(HOME, Intactness::Intact), ("cn-beijing", beijing), ("cn-shanghai", Intactness::Intact)];
        let mut all = all.map(|(region, results)| (region.to_owned(), results)).to_vec();
        all.sort();
        all
    };
    let mut first = verify().await;
    first.sort();
    assert_eq!(first, results(Intactness::Damaged));
    let done = fixture.carry(&[]).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert_ne!(fixture.shown("cn-beijing").await.0, before);
    let mut second = verify().await;
    second.sort();
    assert_eq!(second, results(Intactness::Intact));
    fixture.running.stop().await;
}
