//! The case of `coreos/coreos-assembler#2592`: one image is copied to 23 regions, with failures on the way.

use std::time::Duration;

use appferry::contract::v1::{ErrorCode, RegionState, SynchronizationState};

use super::{NAME, failure, region, site, vm};
use crate::harness::{
    ecs::{Ecs, InjectedFault, provider::Status},
    process::Served,
    site::{self as house, HOME, app_sync, ask, finished, images_client},
    until,
};

/// The 23 regions other than the home region.
const TARGETS: [&str; 23] = [
    "cn-beijing",
    "cn-chengdu",
    "cn-fuzhou",
    "cn-guangzhou",
    "cn-heyuan",
    "cn-hongkong",
    "cn-huhehaote",
    "cn-nanjing",
    "cn-qingdao",
    "cn-shanghai",
    "cn-shenzhen",
    "cn-wulanchabu",
    "cn-zhangjiakou",
    "ap-northeast-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-5",
    "eu-central-1",
    "eu-west-1",
    "me-east-1",
    "us-east-1",
    "us-west-1",
];
/// The region where the account's image quota is exhausted.
const FULL: &str = "us-west-1";
/// The region where every second request is throttled for a while.
const THROTTLED: &str = "eu-west-1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_image_goes_to_23_regions_whatever_happens() {
    let regions: Vec<&'static str> = [HOME].into_iter().chain(TARGETS).collect();
    let ecs = Ecs::start(&regions, Duration::from_secs(4)).await;
    let source = ecs.provider().put(HOME, NAME, &[]);
    ecs.provider().lag = Duration::from_millis(300);
    for to in ["cn-beijing", "ap-southeast-2", "me-east-1"] {
        ecs.inject("CopyImage", to, InjectedFault::Hang, 1);
    }
    for to in ["cn-chengdu", "us-east-1"] {
        ecs.inject("CopyImage", to, InjectedFault::CutAfter, 1);
        ecs.inject("DescribeImages", to, InjectedFault::Hang, 2);
    }
    ecs.inject("CopyImage", THROTTLED, InjectedFault::Refuse(400, "Throttling.User", None), 4);
    ecs.inject("DescribeImages", THROTTLED, InjectedFault::Refuse(400, "Throttling.Api", None), 4);
    ecs.provider().full.insert(FULL.to_owned());

    let mut site = site(&ecs, &regions);
    site.worker = "lease_ms = 800\nheartbeat_ms = 100\npoll_ms = 100\nretry_first_ms = 100".to_owned();
    let mut served = site.serve().await;
    let config = site.config_file();
    let mut images = images_client(served.address, Some(house::ADMIN)).await;
    images.add_image(vm("app", &source)).await.expect("it is registered");
    let mut client = app_sync(served.address, Some(house::ADMIN)).await;
    let request = client.synchronize_app(ask("app", &[])).await.expect("it is accepted").into_inner().request_id;

    // The service is killed after some copies have been requested, and again while most are in progress.
    let accepted =
        || ecs.provider().calls.iter().filter(|call| call.action == "CopyImage" && call.code == "OK").count();
    for copies in [3, 15] {
        until("copies in progress", async || (accepted() >= copies).then_some(())).await;
        served.kill();
        served = Served::configured(&config).await;
    }
    client = app_sync(served.address, Some(house::ADMIN)).await;
    let done = finished(&mut client, &request).await;
    assert_eq!(done.state(), SynchronizationState::Failed, "{done:?}");
    let available = done.regions.iter().filter(|region| region.state() == RegionState::Available).count();
    assert_eq!(available, 22, "{done:?}");
    let (code, message) = failure(&done, FULL);
    assert!(code == ErrorCode::EcsError && message.contains("QuotaExceed.Image"), "{message}");
    for to in TARGETS {
        let made = ecs.provider().images(to);
        if to == FULL {
            assert!(made.is_empty(), "{to}: {made:?}");
        } else {
            assert_eq!((made.len(), made[0].status), (1, Status::Available), "{to}: {made:?}");
        }
    }
    // The number of created images equals the number of existing ones: repeated requests had the same client token.
    let made = ecs.provider().copies_started();
    assert_eq!(made, 22, "one CopyImage was accepted for each");

    // With quota available, a second call copies the missing image and nothing else.
    ecs.provider().full.clear();
    let before = ecs.provider().calls.len();
    let request = client.synchronize_app(ask("app", &[])).await.expect("it is accepted").into_inner().request_id;
    let done = finished(&mut client, &request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert_eq!(done.regions.len(), 1, "{done:?}");
    assert_eq!(region(&done, FULL).state(), RegionState::Available);
    let provider = ecs.provider();
    assert!(provider.calls[before..].iter().all(|call| [FULL, HOME].contains(&call.region.as_str())));
    assert_eq!(provider.copies_started(), 23);
}
