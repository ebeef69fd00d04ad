//! Buckets with restricted access: Object Lock and versioning, keys with few permissions, and the errors that S3
//! returns.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use appferry::contract::v1::SynchronizationState;
use http::{Method, StatusCode};

use super::{failure_message, synchronized};
use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, noise},
    proxy::{Action, Proxy, ReceivedRequest},
    site::{Running, Site},
};

/// Returns an error response in S3's format.
fn refusal(status: u16, code: &str, message: &str) -> Action {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let headers = vec![("content-type", "application/xml".to_owned())];
    Action::Answer(StatusCode::from_u16(status).expect("a status"), headers, body)
}

/// Returns layers, one of which is large enough for a multipart upload.
fn layers(seed: u64) -> Vec<Vec<u8>> {
    vec![noise(300_000, seed), noise(17 << 20, seed + 1)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_with_object_lock_takes_images() {
    let bucket = Bucket::start().await;
    bucket.make_locked("locked");
    // Requires a checksum, as S3 does (Amazon S3, "Object Lock considerations"); MinIO is less strict.
    let strict = |request: &ReceivedRequest| {
        let is_signed = request.authorization.as_ref().is_some_and(|signed| signed.contains("x-amz-checksum-"));
        if request.method == Method::PUT && !is_signed {
            return refusal(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required");
        }
        Action::Pass
    };
    let proxy = Proxy::start(bucket.address, strict).await;
    let keys = bucket.keys(proxy.address);
    let running = Site::new()
        .with("cn-beijing", "s3://locked/sha256", &keys)
        .with("cn-shanghai", "s3://locked/crc64", format!("{keys}\nchecksum = \"crc64nvme\""))
        .with("cn-shenzhen", "s3://locked/none", format!("{keys}\nchecksum = \"none\""))
        .start()
        .await;
    let app = running.add("a", &layers(1)).await;
    synchronized(&running, &app, &["cn-beijing", "cn-shanghai"]).await;
    for prefix in ["sha256", "crc64"] {
        let layout = running.site.directory.path().join(prefix);
        bucket.pull_from("locked", &format!("{prefix}/a"), &layout).await;
        images::verify(&layout);
    }
    let request = running.synchronize(&app, &["cn-shenzhen"]).await.expect("it is accepted");
    let message = failure_message(&running.finished(&request).await, "cn-shenzhen");
    assert!(message.contains("InvalidRequest: Content-MD5 OR x-amz-checksum-"), "{message}");
    running.stop().await;
}

/// Starts a service whose bucket is accessed with a temporary key that is restricted to `actions`.
async fn restricted(bucket: &Bucket, actions: &[&str]) -> Running {
    let site = Site::new();
    let file = site.directory.path().join("credentials");
    fs::write(&file, bucket.temporary_key(actions)).expect("a file");
    let keys = format!("endpoint = \"http://{}\"\ncredentials_file = \"{}\"", bucket.address, file.display());
    site.with("cn-beijing", format!("s3://{BUCKET}/images"), keys).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_may_not_list_is_enough() {
    let bucket = Bucket::start().await;
    let running = restricted(&bucket, &["s3:GetObject", "s3:PutObject"]).await;
    let app = running.add("a", &layers(1)).await;
    synchronized(&running, &app, &["cn-beijing"]).await;
    let layout = running.site.directory.path().join("out");
    bucket.pull("images/a", &layout).await;
    images::verify(&layout);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_known_to_be_missing_is_not_written_over() {
    let bucket = Bucket::start().await;
    // Without read permission, the service cannot determine whether another image has the name.
    let running = restricted(&bucket, &["s3:PutObject"]).await;
    let app = running.add("a", &layers(1)).await;
    let theirs = bytes::Bytes::from_static(b"{\"schemaVersion\":2,\"manifests\":[]}");
    let index = "images/a/index.json".into();
    let objects = bucket.objects();
    object_store::ObjectStoreExt::put(&*objects, &index, theirs.clone().into()).await.expect("it is accepted");
    let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let message = failure_message(&running.finished(&request).await, "cn-beijing");
    assert!(message.contains("403") && message.contains("s3:GetObject"), "{message}");
    let object = object_store::ObjectStoreExt::get(&*objects, &index).await.expect("it is there");
    assert_eq!(object.bytes().await.expect("bytes"), theirs);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permission_that_is_missing_is_named_and_enough_once_it_is_granted() {
    let bucket = Bucket::start().await;
    let running = restricted(&bucket, &["s3:GetObject", "s3:ListBucket"]).await;
    let app = running.add("a", &layers(1)).await;
    let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let message = failure_message(&running.finished(&request).await, "cn-beijing");
    assert!(message.contains("AccessDenied") && message.contains("need s3:PutObject"), "{message}");
    // The key file is replaced, and the service reads the new key without a restart.
    let granted = bucket.temporary_key(&["s3:GetObject", "s3:ListBucket", "s3:PutObject"]);
    fs::write(running.site.directory.path().join("credentials"), granted).expect("a file");
    synchronized(&running, &app, &["cn-beijing"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_says_decides_whether_it_is_tried_again() {
    let bucket = Bucket::start().await;
    let answers: Arc<Mutex<Vec<Action>>> = Arc::default();
    let next = Arc::clone(&answers);
    let rule = move |request: &ReceivedRequest| {
        let said = if request.method == Method::PUT { next.lock().expect("no panic").pop() } else { None };
        said.unwrap_or(Action::Pass)
    };
    let proxy = Proxy::start(bucket.address, rule).await;
    let keys = bucket.keys(proxy.address);
    let running = Site::new().with("cn-beijing", format!("s3://{BUCKET}/images"), keys).start().await;
    for (seed, (status, code)) in
        (1..).zip([(403, "RequestTimeTooSkewed"), (503, "SlowDown"), (400, "BadDigest"), (409, "OperationAborted")])
    {
        let app = running.add(&format!("passing-{seed}"), &[noise(300_000, seed)]).await;
        *answers.lock().expect("no panic") = vec![refusal(status, code, "said once")];
        let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
        let done = running.finished(&request).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{code}: {done:?}");
        assert!(answers.lock().expect("no panic").is_empty(), "{code}: it was said");
    }
    let app = running.add("final", &[noise(300_000, 9)]).await;
    *answers.lock().expect("no panic") = vec![refusal(400, "EntityTooLarge", "no"); 50];
    let request = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    let message = failure_message(&done, "cn-beijing");
    assert!(message.contains("EntityTooLarge: no") && done.regions[0].attempt == 1, "{done:?}");
    running.stop().await;
}
