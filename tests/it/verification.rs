//! Verification: images are read again, and damaged replicas are repaired.

use std::fs;

use appferry::contract::v1::{Intactness, SynchronizationState, VerifyImageRequest, VerifyImageResponse};
use object_store::ObjectStoreExt as _;
use tonic::Code;

use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, noise},
    process,
    registry::Registry,
    site::{ADMIN, HOME, Running, Site},
};

async fn verify(running: &Running, regions: &[&str]) -> Vec<VerifyImageResponse> {
    let region_ids = regions.iter().map(|&region| region.to_owned()).collect();
    let request = VerifyImageRequest { image_id: "a".into(), region_ids };
    let mut stream = running.images().await.verify_image(request).await.expect("it is verified").into_inner();
    let mut results = Vec::new();
    while let Some(message) = stream.message().await.expect("it goes on") {
        results.push(message);
    }
    results
}

fn of<'a>(results: &'a [VerifyImageResponse], region: &str) -> &'a VerifyImageResponse {
    results.iter().find(|results| results.region_id == region).expect("the region")
}

async fn synchronize_to(running: &Running, regions: &[&str]) {
    let request = running.synchronize("a", regions).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_found_damaged_is_made_good_by_the_next_call() {
    let (registry, bucket) = (Registry::start().await, Bucket::start().await);
    let running = Site::new()
        .with("cn-shanghai", format!("s3://{BUCKET}/x"), bucket.keys(bucket.address))
        .with("cn-shenzhen", registry.store("apps"), "")
        .start()
        .await;
    running.add("a", &[noise(200_000, 1), noise(300_000, 2)]).await;
    synchronize_to(&running, &[]).await;
    let results = verify(&running, &[]).await;
    assert_eq!(results.len(), 4);
    assert!(results.iter().all(|f| f.intactness() == Intactness::Intact && f.bytes_read > 500_000), "{results:?}");

    // Changes a byte of a file, replaces an object, and removes a blob.
    let layer = images::layers(&running.site.image(HOME, "a"))[0].clone();
    let file = images::blob_path(&running.site.image("cn-beijing", "a"), &layer);
    let mut bytes = fs::read(&file).expect("it is there");
    bytes[1_000] ^= 1;
    fs::write(&file, &bytes).expect("it is written");
    let object = format!("x/a/blobs/sha256/{}", layer.trim_start_matches("sha256:"));
    bucket.objects().put(&object.into(), bytes.into()).await.expect("it is put");
    fs::remove_file(registry.blob(&layer)).expect("it was there");

    let results = verify(&running, &[]).await;
    for region in ["cn-beijing", "cn-shanghai", "cn-shenzhen"] {
        let results = of(&results, region);
        assert_eq!(results.intactness(), Intactness::Damaged, "{results:?}");
        assert!(results.problems[0].contains(&layer), "{results:?}");
    }
    assert_eq!(of(&results, HOME).intactness(), Intactness::Intact);
    let absent = verify(&running, &["cn-beijing"]).await;
    assert_eq!(absent[0].intactness(), Intactness::Absent, "it is not said to have it any more");

    synchronize_to(&running, &["cn-beijing", "cn-shanghai", "cn-shenzhen"]).await;
    let results = verify(&running, &[]).await;
    assert!(results.iter().all(|f| f.intactness() == Intactness::Intact), "{results:?}");
    let refused = running.synchronize("a", &["cn-beijing"]).await.expect_err("it is there again");
    assert_eq!(refused.code(), Code::AlreadyExists);
    running.stop().await;
}

/// The distribution project's registry ignores uploads of a blob that it has: the error says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_keeps_a_damaged_blob_is_not_believed() {
    let registry = Registry::start().await;
    let running = Site::new().with("cn-shenzhen", registry.store("apps"), "").start().await;
    running.add("a", &[noise(200_000, 1)]).await;
    synchronize_to(&running, &["cn-shenzhen"]).await;
    let layer = images::layers(&running.site.image(HOME, "a"))[0].clone();
    let mut bytes = fs::read(registry.blob(&layer)).expect("it is there");
    bytes[1_000] ^= 1;
    fs::write(registry.blob(&layer), bytes).expect("it is written");
    let results = verify(&running, &["cn-shenzhen"]).await;
    assert_eq!(results[0].intactness(), Intactness::Damaged);
    let request = running.synchronize("a", &["cn-shenzhen"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Failed, "{done:?}");
    let message = &done.regions[0].error.as_ref().expect("a reason").message;
    assert!(message.contains(&layer) && message.contains("remove it there"), "{message}");
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_verified_is_refused_or_said() {
    let running = Site::new().start().await;
    running.add("a", &[noise(1_000, 1)]).await;
    let mut images = running.images().await;
    let request = |image: &str, region: &str| VerifyImageRequest {
        image_id: image.to_owned(),
        region_ids: vec![region.to_owned()],
    };
    let refused = images.verify_image(request("b", HOME)).await.expect_err("it is not registered");
    assert_eq!(refused.code(), Code::NotFound);
    let refused = images.verify_image(request("a", "mars")).await.expect_err("it is not configured");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("mars"), "{refused:?}");
    let results = verify(&running, &["cn-beijing"]).await;
    assert_eq!(results[0].intactness(), Intactness::Absent);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_tells_of_each_region_and_fails_if_one_is_not_whole() {
    let running = Site::new().start().await;
    running.add("a", &[noise(1_000, 1)]).await;
    synchronize_to(&running, &["cn-beijing"]).await;
    let directory = running.site.directory.path().to_owned();
    let endpoint = format!("http://{}", running.address);
    let run = |arguments: &[&str]| {
        let mut command =
            process::command(&directory, &[&["image", "verify", "a", "--endpoint", &endpoint], arguments].concat());
        command.env("APPFERRY_TOKEN", ADMIN);
        tokio::task::block_in_place(|| command.output()).expect("it runs")
    };
    let text = process::stdout(&run(&[]));
    assert!(text.contains("cn-beijing  INTACT") && text.contains("cn-hangzhou  INTACT"), "{text}");
    let layer = images::layers(&running.site.image(HOME, "a"))[0].clone();
    fs::remove_file(images::blob_path(&running.site.image("cn-beijing", "a"), &layer)).expect("it was there");
    let output = run(&["--region", "cn-beijing"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("cn-beijing  DAMAGED") && text.contains(&layer), "{text}");
    assert!(process::stderr(&output).contains("`appferry sync a --to cn-beijing`"), "{output:?}");
    running.stop().await;
}
