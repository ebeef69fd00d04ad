//! Invalid input is rejected with an error that names the field and the value, and the service stays available.

use std::time::Duration;

use appferry::{
    app::Role,
    contract::v1::{
        AddImageRequest, CancelSynchronizationRequest, ContainerImageSpec, GetImageRequest, GetSynchronizationRequest,
        ImageType, ListImagesRequest, ListSynchronizationsRequest, RemoveImageRequest, SynchronizeAppRequest,
        VmImageSpec, WatchSynchronizationRequest, add_image_request::ImageSpec,
    },
};
use sea_orm::ConnectionTrait as _;
use tonic::Code;

use crate::harness::{
    images::{self, noise},
    refusal,
    site::{ADMIN, HOME, Running, SYNC_ONLY, Site, ask, images_client, registration},
};

async fn accepting() -> Running {
    Site::new().start_as(Role::Server).await
}

/// Asserts that the service still accepts valid calls.
async fn goes_on(running: &Running) {
    let app = running.add("still-there", &[noise(10, 1)]).await;
    running.synchronize(&app, &[]).await.expect("it is accepted");
}

#[tokio::test]
async fn ids_that_are_none_are_named() {
    let running = accepting().await;
    let mut client = running.app_sync().await;
    let long = "x".repeat(129);
    for (app, says) in [
        ("", "it is empty"),
        ("..", "\"..\""),
        ("a/../../etc", "\"a/../../etc\""),
        ("-a", "\"-a\""),
        ("a b", "\"a b\""),
        ("ä", "\"ä\""),
        (&*long, "129"),
    ] {
        let refused = client.synchronize_app(ask(app, &[])).await.expect_err(app);
        refusal::read(&refused).is_invalid("app_id", &[says]);
    }
    let refused = client
        .get_synchronization(GetSynchronizationRequest { request_id: "not-a-uuid".into() })
        .await
        .expect_err("no uuid");
    refusal::read(&refused).is_invalid("request_id", &["\"not-a-uuid\""]);
    goes_on(&running).await;
    running.stop().await;
}

#[tokio::test]
async fn regions_that_are_none_are_named() {
    let running = accepting().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let refused = running.synchronize(&app, &["cn-shanghai", "cn-nowhere"]).await.expect_err("unknown");
    refusal::read(&refused)
        .is_invalid("target_region_ids", &["cn-nowhere", "configured regions: cn-beijing, cn-hangzhou"]);
    let refused = running.synchronize(&app, &["all", "../cn-shanghai"]).await.expect_err("malformed");
    refusal::read(&refused).is_invalid("target_region_ids", &["../cn-shanghai"]);
    for count in [101, 3_000] {
        let regions = vec!["cn-shanghai"; count];
        let refused = running.synchronize(&app, &regions).await.expect_err("too many");
        refusal::read(&refused).is_invalid("target_region_ids", &[&count.to_string(), "100"]);
    }
    // Ten thousand regions exceed the maximum size of a message.
    let refused = running.synchronize(&app, &vec!["cn-shanghai"; 10_000]).await.expect_err("too large");
    refusal::read(&refused).is_invalid("the request", &["65536"]);
    goes_on(&running).await;
    running.stop().await;
}

#[tokio::test]
async fn a_message_of_a_mebibyte_is_refused() {
    let running = accepting().await;
    let refused = running.synchronize(&"x".repeat(1 << 20), &[]).await.expect_err("too large");
    refusal::read(&refused).is_invalid("the request", &["65536"]);
    // The same applies to methods whose resource is in the message. The body is not read completely, for any caller.
    for token in [ADMIN, SYNC_ONLY] {
        let request = GetImageRequest { image_id: "x".repeat(1 << 20), ..Default::default() };
        let refused = images_client(running.address, Some(token)).await.get_image(request).await;
        refusal::read(&refused.expect_err("too large")).is_invalid("the request", &["65536"]);
    }
    goes_on(&running).await;
    running.stop().await;
}

#[tokio::test]
async fn client_tokens_pages_and_filters_are_checked() {
    let running = accepting().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let mut client = running.app_sync().await;
    for (token, says) in [("x".repeat(65), "65"), ("a token".to_owned(), "\"a token\""), ("é".to_owned(), "\"é\"")] {
        let request = SynchronizeAppRequest { client_token: token, ..ask(&app, &[]) };
        let refused = client.synchronize_app(request).await.expect_err("no token");
        refusal::read(&refused).is_invalid("client_token", &[says]);
    }
    for (request, field, says) in [
        (ListSynchronizationsRequest { page_size: -1, ..Default::default() }, "page_size", "-1"),
        (ListSynchronizationsRequest { page_size: 1_001, ..Default::default() }, "page_size", "1001"),
        (ListSynchronizationsRequest { page_token: "zz".into(), ..Default::default() }, "page_token", "\"zz\""),
        (ListSynchronizationsRequest { state: 77, ..Default::default() }, "state", "77"),
        (ListSynchronizationsRequest { app_id: "a/b".into(), ..Default::default() }, "app_id", "\"a/b\""),
    ] {
        let refused = client.list_synchronizations(request).await.expect_err(says);
        refusal::read(&refused).is_invalid(field, &[says]);
    }
    let request = ListImagesRequest { page_size: 5_000, page_token: String::new(), ..Default::default() };
    let refused = running.images().await.list_images(request).await.expect_err("too many");
    refusal::read(&refused).is_invalid("page_size", &["5000"]);
    running.stop().await;
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let running = accepting().await;
    let refused = running.synchronize("nobody-knows-it", &[]).await.expect_err("unknown");
    let refused = refusal::read(&refused);
    refused.is(Code::NotFound, "ImageNotFound", 404);
    assert!(refused.message.contains("nobody-knows-it"), "{}", refused.message);

    let mut images = running.images().await;
    let refused = images
        .get_image(GetImageRequest { image_id: "nobody-knows-it".into(), ..Default::default() })
        .await
        .expect_err("unknown");
    refusal::read(&refused).is(Code::NotFound, "ImageNotFound", 404);
    let refused = images
        .remove_image(RemoveImageRequest { image_id: "nobody-knows-it".into(), ..Default::default() })
        .await
        .expect_err("unknown");
    refusal::read(&refused).is(Code::NotFound, "ImageNotFound", 404);

    let mut client = running.app_sync().await;
    let request_id = "896D338C-E4F4-41EC-A154-D605E5DE42F1".to_owned();
    let get = client.get_synchronization(GetSynchronizationRequest { request_id: request_id.clone() }).await;
    let watch = client.watch_synchronization(WatchSynchronizationRequest { request_id: request_id.clone() }).await;
    let cancel = client.cancel_synchronization(CancelSynchronizationRequest { request_id: request_id.clone() }).await;
    for refused in [get.expect_err("unknown"), watch.expect_err("unknown"), cancel.expect_err("unknown")] {
        let refused = refusal::read(&refused);
        refused.is(Code::NotFound, "SynchronizationNotFound", 404);
        assert!(refused.message.contains(&request_id), "{}", refused.message);
    }
    running.stop().await;
}

#[tokio::test]
async fn images_are_registered_once_and_only_if_they_are_there() {
    let running = accepting().await;
    let mut client = running.images().await;
    let vm = |id: &str| Some(ImageSpec::VmImageSpec(VmImageSpec { image_id: id.to_owned() }));
    let container =
        |url: &str| Some(ImageSpec::ContainerImageSpec(ContainerImageSpec { registry_url: url.to_owned() }));
    let (type_vm, type_container) = (ImageType::Vm.into(), ImageType::Container.into());
    let plain = || AddImageRequest { name: "n".into(), image_type: type_vm, ..Default::default() };
    for (request, field, says) in [
        (AddImageRequest { name: " ".into(), ..plain() }, "name", "it is empty"),
        (AddImageRequest { name: "n".repeat(129), ..plain() }, "name", "129"),
        (AddImageRequest { image_version: "v".repeat(65), ..plain() }, "image_version", "65"),
        (AddImageRequest { description: "d".repeat(1_025), ..plain() }, "description", "1025"),
        (AddImageRequest { image_type: 0, ..plain() }, "image_type", "missing"),
        (AddImageRequest { image_type: 9, ..plain() }, "image_type", "9"),
        (plain(), "vm_image_spec", "missing"),
        (AddImageRequest { image_spec: container("oci:a"), ..plain() }, "vm_image_spec", "missing"),
        (AddImageRequest { image_spec: vm("../../etc"), ..plain() }, "vm_image_spec.image_id", "../../etc"),
        (
            AddImageRequest { image_type: type_container, image_spec: container("docker.io/library/x"), ..plain() },
            "container_image_spec.registry_url",
            "docker.io/library/x",
        ),
        (AddImageRequest { image_spec: vm("a"), image_id: "..".into(), ..plain() }, "image_id", "\"..\""),
    ] {
        let refused = client.add_image(request).await.expect_err(says);
        refusal::read(&refused).is_invalid(field, &[says]);
    }
    let refused = client.add_image(registration("not-there")).await.expect_err("not there");
    let refused = refusal::read(&refused);
    refused.is(Code::NotFound, "ImageNotFound", 404);
    assert_eq!(refused.detail.region_ids, [HOME]);

    running.add("there", &[noise(10, 1)]).await;
    let refused = client.add_image(registration("there")).await.expect_err("twice");
    refusal::read(&refused).is(Code::AlreadyExists, "ImageAlreadyExists", 400);
    running.stop().await;
}

#[tokio::test]
async fn a_corrupt_layout_is_not_registered() {
    let running = accepting().await;
    let layout = |name: &str| running.site.image(HOME, name);
    let manifest = |name: &str| images::blob_path(&layout(name), &images::write(&layout(name), &[noise(10, 1)]));
    std::fs::create_dir(layout("no-index")).expect("a directory");
    images::write(&layout("no-json"), &[noise(10, 1)]);
    std::fs::write(layout("no-json").join("index.json"), "{").expect("it is written");
    images::write(&layout("two"), &[noise(10, 1)]);
    let index = std::fs::read_to_string(layout("two").join("index.json")).expect("it is there");
    let another = images::digest(b"another");
    let entry = entry_of(&index, &another);
    let two = index.replace("\"manifests\":[", &format!("\"manifests\":[{entry},"));
    std::fs::write(layout("two").join("index.json"), two).expect("it is written");
    std::fs::write(manifest("changed"), "{}").expect("it is written");
    std::fs::remove_file(manifest("gone")).expect("it was there");
    images::write(&layout("link"), &[noise(10, 1)]);
    std::fs::remove_file(layout("link").join("index.json")).expect("it was there");
    std::os::unix::fs::symlink("/etc/hostname", layout("link").join("index.json")).expect("a link");

    let mut client = running.images().await;
    for (name, code, reason, says) in [
        ("no-index", Code::NotFound, "ImageNotFound", "no-index"),
        ("no-json", Code::Internal, "ServiceAPIError", "no-json/index.json can't be used"),
        ("two", Code::Internal, "ServiceAPIError", "it has 2 images; name one of them"),
        ("changed", Code::Internal, "ServiceAPIError", "has 2 bytes and should have"),
        ("gone", Code::NotFound, "ImageNotFound", "is not there"),
        ("link", Code::Internal, "ServiceAPIError", "link/index.json"),
    ] {
        let refused = client.add_image(registration(name)).await.expect_err(name);
        let refused = refusal::read(&refused);
        assert_eq!((refused.code, refused.reason.as_str()), (code, reason), "{name}: {}", refused.message);
        assert!(refused.message.contains(says), "{name}: {}", refused.message);
        assert_eq!(refused.detail.region_ids, [HOME]);
    }
    goes_on(&running).await;
    running.stop().await;
}

/// Returns the first entry of an index, with its digest replaced by `digest`.
fn entry_of(index: &str, digest: &str) -> String {
    let index: serde_json::Value = serde_json::from_str(index).expect("it is JSON");
    let mut entry = index["manifests"][0].clone();
    entry["digest"] = digest.into();
    entry.to_string()
}

#[tokio::test]
async fn an_image_is_not_removed_while_it_is_copied() {
    let running = accepting().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let mut client = running.images().await;
    let request = RemoveImageRequest { image_id: app.clone(), ..Default::default() };
    let refused = client.remove_image(request.clone()).await.expect_err("it is being copied");
    let refused = refusal::read(&refused);
    refused.is(Code::FailedPrecondition, "ImageInUse", 409);
    assert_eq!(refused.detail.region_ids, ["cn-beijing"]);

    let cancel = CancelSynchronizationRequest { request_id: id };
    running.app_sync().await.cancel_synchronization(cancel).await.expect("it is canceled");
    client.remove_image(request).await.expect("nothing is in flight");
    assert!(images::visible(&running.site.image(HOME, "a")), "the bytes stay where they are");
    let refused = running.synchronize(&app, &[]).await.expect_err("it is gone");
    refusal::read(&refused).is(Code::NotFound, "ImageNotFound", 404);
    running.stop().await;
}

#[tokio::test]
async fn methods_and_messages_that_are_none_are_refused_in_the_contracts_form() {
    let running = accepting().await;
    let mut grpc = tonic::client::Grpc::new(running.channel().await);
    for (path, message, code, reason) in [
        ("/appferry.v1.AppSyncService/NoSuchMethod", &b""[..], Code::Unimplemented, "InvalidAction.NotFound"),
        ("/appferry.v1.NoSuchService/NoSuchMethod", b"", Code::Unimplemented, "InvalidAction.NotFound"),
        ("/appferry.v1.AppSyncService/SynchronizeApp", b"\xff\xff\xff", Code::InvalidArgument, "InvalidParams"),
        ("/appferry.v1.ImageService/GetImage", b"\xff\xff\xff", Code::InvalidArgument, "InvalidParams"),
    ] {
        grpc.ready().await.expect("it is connected");
        let mut request = tonic::Request::new(bytes::Bytes::from_static(message));
        let token = format!("Bearer {}", crate::harness::site::ADMIN).parse().expect("a header");
        request.metadata_mut().insert("authorization", token);
        let refused = grpc.unary(request, path.parse().expect("a path"), Raw).await.expect_err(path);
        let refused = refusal::read(&refused);
        assert_eq!((refused.code, refused.reason.as_str()), (code, reason), "{path}: {}", refused.message);
    }
    goes_on(&running).await;
    running.stop().await;
}

/// A codec that sends raw bytes.
#[derive(Clone)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = bytes::Bytes;
    type Decode = bytes::Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = bytes::Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: bytes::Bytes, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put(to, item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = bytes::Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<bytes::Bytes>, tonic::Status> {
        let length = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, length)))
    }
}

#[tokio::test]
async fn a_database_that_others_hold_is_unavailable_and_one_that_is_broken_is_an_error() {
    let running = accepting().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let url = format!("sqlite://{}", running.site.file().display());
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(1);
    let other = sea_orm::Database::connect(options).await.expect("a connection");

    other.execute_unprepared("BEGIN EXCLUSIVE").await.expect("the lock");
    let started = std::time::Instant::now();
    let refused = running.synchronize(&app, &[]).await.expect_err("it is locked");
    let refused = refusal::read(&refused);
    refused.is(Code::Unavailable, "ServiceUnavailable", 503);
    assert_eq!(refused.retry_after, Some(1.0));
    assert!(started.elapsed() < Duration::from_secs(10), "it is rejected quickly");
    other.execute_unprepared("ROLLBACK").await.expect("the lock is released");
    running.synchronize(&app, &["cn-beijing"]).await.expect("it goes on");

    other.execute_unprepared("ALTER TABLE synchronization RENAME TO hidden").await.expect("it is renamed");
    let refused = running.synchronize(&app, &[]).await.expect_err("it is broken");
    let refused = refusal::read(&refused);
    refused.is(Code::Internal, "DbError", 406);
    assert_eq!(refused.message, "A database error occurred.", "no internal error is exposed");
    other.execute_unprepared("ALTER TABLE hidden RENAME TO synchronization").await.expect("it is renamed");
    running.synchronize(&app, &[]).await.expect("it goes on");
    running.stop().await;
}
