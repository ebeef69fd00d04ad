//! All attacks at once against one process with the default limits. The limits together keep the process's memory
//! bounded and leave capacity for the administrator.

use std::time::{Duration, Instant};

use appferry::{
    app::{Role, Service},
    config::Config,
    contract::v1::{AddImageRequest, ImageType, VmImageSpec, add_image_request},
    db,
};
use tokio::task::JoinSet;

use super::{
    attack::{ATTACKS, Addresses, OpenConnections},
    memory::peak,
};
use crate::harness::{
    address::free_address,
    images::{self, noise},
    process::Served,
    site::{ADMIN, HOME, Site, images_client},
};

/// Limit for the peak resident memory of the process, in MiB.
const LIMIT_MIB: u64 = 256;

/// How long the attacks last.
const ATTACK: Duration = Duration::from_secs(12);

/// Pause before an attack is repeated. The attacks target memory and concurrency. They must not exhaust the processors,
/// which they share with the service.
const REST: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_attacks_at_once_keep_nobody_out_and_take_little_memory() {
    let mut site = Site::new();
    let (form, http) = (free_address(), free_address());
    let secret = site.directory.path().join("secret");
    std::fs::write(&secret, "secret").expect("it is written");
    site.more = format!(
        "[openapi]\nlisten = \"{form}\"\n[http]\nlisten = \"{http}\"\n\
         [[principal]]\narn = \"acs:ram::1234:role/signs\"\n[[principal.access_key]]\nid = \"known\"\nsecret_file = \"{}\"\n",
        secret.display()
    );
    let file = site.write_config();
    fill(&site, &file).await;
    let served = Served::configured(&file).await;
    let addresses = Addresses { grpc: served.address, form, http };

    let mut attackers = JoinSet::new();
    let end = Instant::now() + ATTACK;
    for attack in ATTACKS {
        attackers.spawn(async move {
            // Keeps the newest connections open until the end.
            let mut open = OpenConnections::default();
            while Instant::now() < end {
                attack.once(addresses, &mut open).await;
                tokio::time::sleep(REST).await;
            }
        });
    }
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        let began = Instant::now();
        let list = async {
            let mut images = images_client(served.address, Some(ADMIN)).await;
            images.list_regions(appferry::contract::v1::ListRegionsRequest {}).await
        };
        let answer = tokio::time::timeout(Duration::from_secs(10), list).await.expect("it is answered");
        answer.expect("the administrator may ask");
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while let Some(ended) = attackers.join_next().await {
        ended.expect("no panic");
    }
    let peak_mib = peak(&served);
    println!("at most {peak_mib} MiB; the administrator waited for {slowest:?} at most");
    assert!(peak_mib < LIMIT_MIB, "{peak_mib} MiB");
    // The bound is generous, because attackers and service are unoptimized and share the processors with other tests.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// Registers images with long descriptions, so that list responses are large.
async fn fill(site: &Site, file: &std::path::Path) {
    let config = Config::load(file).expect("it is one");
    db::migrate(&config.database.settings()).await.expect("the schema");
    let service = Service::start(&config, Role::Server).await.expect("it starts");
    let mut client = images_client(service.address().expect("it listens"), Some(ADMIN)).await;
    images::write(&site.image(HOME, "one"), &[noise(10, 1)]);
    for n in 0..600 {
        let image = AddImageRequest {
            name: format!("image-{n}"),
            description: "d".repeat(1_024),
            image_type: ImageType::Vm.into(),
            image_spec: Some(add_image_request::ImageSpec::VmImageSpec(VmImageSpec { image_id: "one".to_owned() })),
            ..AddImageRequest::default()
        };
        client.add_image(image).await.expect("it is registered");
    }
    service.shutdown().await;
}
