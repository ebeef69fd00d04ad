//! Texts from hostile stores end up in errors, rows, logs, headers and terminals. They must be short and printable in
//! all of them.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use appferry::{
    client::Client,
    contract::v1::{
        AddImageRequest, AddImageResponse, AdditionalRegionInfo, GetAppVersionsRequest, GetAppVersionsResponse,
        GetImageRequest, GetImageResponse, Image, ListImagesRequest, ListImagesResponse, ListRegionsRequest,
        ListRegionsResponse, RegionState, RemoveImageRequest, RemoveImageResponse, SynchronizationState,
        VerifyImageRequest, VerifyImageResponse,
        image_service_server::{ImageService, ImageServiceServer},
    },
    domain::{Digest, ImageName, is_unprintable},
    storage::{DirStore, Error, ManifestGraph, Source as _, Store as _},
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{MANIFEST, answer, blob, hostile, manifest, name, store};
use crate::harness::{
    images::{self, noise},
    process, refusal,
    site::{ADMIN, HOME, Site, container, registration},
    until,
};

/// Control sequences, direction overrides, and line breaks.
const EVIL: &str = "\u{1b}]0;PWNED\u{7}\u{1b}[2Jred\u{202e}\u{9b}32m\r\nFAKE-LINE  AVAILABLE\u{8}\u{2066}";
/// Length of a text that is longer than any reasonable error message, in bytes.
const LONG: usize = 3_500_000;
/// Maximum length in bytes of an error message, which includes the operation, the quoted text, and the sentence around
/// them.
const MOST: usize = 1_200;

fn evil() -> String {
    format!("{EVIL}{}", "y".repeat(LONG))
}

fn is_fit(error: &Error) {
    let text = error.to_string();
    assert!(text.len() <= MOST, "{} bytes: {}", text.len(), &text[..200]);
    assert!(!text.contains(is_unprintable), "{text:?}");
}

/// Returns a manifest whose only layer has this value in one field.
fn manifest_with(field: &str, value: serde_json::Value) -> String {
    let digest = blob(b"{}").digest.to_string();
    let mut layer = json!({ "mediaType": "application/octet-stream", "digest": digest, "size": 2 });
    layer[field] = value;
    let config = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2 });
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] }).to_string()
}

#[tokio::test]
async fn no_manifest_makes_an_error_long_or_unprintable() {
    for (field, value) in [
        ("digest", json!(evil())),
        ("digest", json!(format!("sha256:{}", evil()))),
        ("size", json!(evil())),
        ("mediaType", json!({ evil(): 1 })),
    ] {
        let content = manifest_with(field, value);
        let root = manifest(content.as_bytes());
        let kind = vec![("content-type", MANIFEST.to_owned())];
        let proxy = hostile(move |_| answer(200, kind.clone(), &content)).await;
        let error = ManifestGraph::read(&store(&proxy), &name(), &root, &[]).await.expect_err("it is none");
        assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
        is_fit(&error);
    }
}

#[tokio::test]
async fn no_answer_makes_an_error_long_or_unprintable() {
    let long = "z".repeat(60_000);
    let errors =
        json!({ "errors": [{ "code": evil(), "message": evil() }, { "code": "x", "message": long }] }).to_string();
    let realm = format!("Bearer realm=\"http://{long}.example/\"");
    for (status, headers, body) in [
        (403, vec![], evil()),
        (400, vec![], errors),
        (500, vec![("retry-after", "0".to_owned())], evil()),
        (401, vec![("www-authenticate", realm)], String::new()),
        (307, vec![("location", format!("http://{long}.example/"))], String::new()),
        (307, vec![("location", format!("/v2/{long}"))], String::new()),
        (307, vec![("location", format!("http://elsewhere.example:99999/{long}"))], String::new()),
        (200, vec![("content-type", long.clone())], "{}".to_owned()),
    ] {
        let proxy = hostile(move |_| answer(status, headers.clone(), &body)).await;
        let store = store(&proxy);
        if let Err(error) = store.read_manifest(&name(), &manifest(b"{}")).await {
            is_fit(&error);
        }
        is_fit(&store.referrers(&name(), blob(b"x").digest).await.err().unwrap_or(Error::Overtaken));
        let read = store.read_blob(&name(), &blob(b"blob"), 0, None).await;
        is_fit(&read.err().unwrap_or(Error::Overtaken));
        is_fit(&store.probe().await.expect_err("no upload is begun"));
    }
}

#[tokio::test]
async fn no_tag_of_a_layout_makes_an_error_long_or_unprintable() {
    let directory = tempfile::tempdir().expect("a directory");
    let layout = directory.path().join("evil");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a layout");
    let entry = |image: u8, tag: &str| {
        let annotations = json!({ "org.opencontainers.image.ref.name": tag });
        let digest = Digest::Sha256([image; 32]).to_string();
        json!({ "mediaType": MANIFEST, "digest": digest, "size": 3, "annotations": annotations })
    };
    let many: Vec<_> =
        (0..5_000_u32).map(|number| entry(number.to_le_bytes()[0], &format!("{EVIL}{number}"))).collect();
    for entries in [vec![entry(0, EVIL), entry(1, &"b".repeat(3_000_000))], many] {
        let index = json!({ "schemaVersion": 2, "manifests": entries }).to_string();
        fs::write(layout.join("index.json"), index).expect("an index");
        let store = DirStore::new(directory.path());
        is_fit(&store.root(&ImageName("evil".into())).await.expect_err("it is ambiguous"));
    }
}

/// An end-to-end test. The home region's registry behaves until an image is registered. Then its referrers lists are
/// malicious, and for a while also its responses for blobs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_lies_fills_no_row_no_log_and_no_screen() {
    let lies = Arc::<AtomicBool>::default();
    let lying = Arc::clone(&lies);
    let refuses = Arc::<AtomicBool>::default();
    let refusing = Arc::clone(&refuses);
    let content = manifest_with("size", json!(2));
    let digest = manifest(content.as_bytes()).digest.to_string();
    let proxy = hostile(move |request| {
        let index = |entries: serde_json::Value| {
            let kind = "application/vnd.oci.image.index.v1+json".to_owned();
            answer(200, vec![("content-type", kind)], &json!({ "schemaVersion": 2, "manifests": entries }).to_string())
        };
        match &request.path {
            path if path.contains("/referrers/") && lying.load(Ordering::Relaxed) => index(json!([evil()])),
            path if path.contains("/referrers/") => index(json!([])),
            path if path.contains("/blobs/") && refusing.load(Ordering::Relaxed) => answer(403, vec![], &evil()),
            path if path.contains("/manifests/sha256-") => answer(404, vec![], &evil()),
            path if path.contains("/manifests/") => {
                let headers = vec![("content-type", MANIFEST.to_owned()), ("docker-content-digest", digest.clone())];
                answer(200, headers, &content)
            }
            _ => answer(200, vec![], "{}"),
        }
    })
    .await;
    let site = Site::new().with(HOME, proxy.store("apps"), "");
    let directory = site.directory.path().to_owned();
    let served = site.serve().await;
    let endpoint = format!("http://{}", served.address);
    let client = Client::builder(&endpoint).token(ADMIN).connect().await.expect("it is there");
    client.add_image(container("app", &format!("{}/apps/a:1", proxy.address))).await.expect("it is registered");
    lies.store(true, Ordering::Relaxed);
    let cli = |arguments: &[&str]| {
        let mut command = process::command(&directory, arguments);
        command.env("APPFERRY_ENDPOINT", &endpoint).env("APPFERRY_TOKEN", ADMIN);
        tokio::task::block_in_place(|| command.output().expect("the program runs"))
    };
    let ended = async |region: &str| {
        let id = process::stdout(&cli(&["sync", "app", "--to", region])).trim().to_owned();
        let mut done = until("the end", async || {
            let now = client.get_synchronization(id.clone()).await.expect("it is known");
            (now.state() != SynchronizationState::Running).then_some(now)
        })
        .await;
        (id, done.regions.remove(0))
    };
    let is_short = |text: &str, says: &str| {
        assert!(text.contains(says) && text.len() < MOST && !text.contains(is_unprintable), "{text:?}");
    };
    refuses.store(true, Ordering::Relaxed);
    let (id, region) = ended("cn-shanghai").await;
    is_short(&region.error.as_ref().expect("a reason").message, "403");
    refuses.store(false, Ordering::Relaxed);
    let (warned, region) = ended("cn-beijing").await;
    assert_eq!(region.state(), RegionState::Available, "{region:?}");
    is_short(&region.warnings[0], "can't be used");
    for arguments in [
        vec!["status", &id],
        vec!["status", &id, "--json"],
        vec!["status", &warned],
        vec!["status", &warned, "--json"],
        vec!["image", "show", "app"],
        vec!["list"],
        vec!["sync", "app", "--to", "cn-shanghai", "--wait"],
    ] {
        let output = cli(&arguments);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text"));
        for text in said {
            assert!(text.len() < 4 * MOST, "{arguments:?}: {} bytes", text.len());
            assert!(!text.contains(|c| c != '\n' && is_unprintable(c)), "{arguments:?}: {text:?}");
            assert!(!text.contains("panicked") && !text.lines().any(|line| line.starts_with("FAKE")), "{text}");
        }
    }
    let log = fs::read_to_string(&served.log).expect("a log");
    assert!(
        log.lines().all(|line| line.len() < 4 * MOST) && !log.contains(|c| c != '\n' && is_unprintable(c)),
        "{log}"
    );
    let rows = fs::metadata(directory.join("state.db")).expect("a database").len();
    assert!(rows < 1 << 20, "{rows} bytes");
}

/// Errors shorten the input that they quote, so that they fit into the 8 KiB of headers that every gRPC client accepts.
#[tokio::test]
async fn a_refusal_fits_into_headers_whatever_it_is_about() {
    let running = Site::new().start().await;
    let mut images = running.images().await;
    let many = "\u{1f980}\u{1b}".repeat(6_000);
    let listed = images.list_images(ListImagesRequest { page_token: many.clone(), ..Default::default() }).await;
    let added = images.add_image(container("x", &format!("oci:{many}"))).await;
    let named = images.add_image(AddImageRequest { image_id: many.clone(), ..registration("a") }).await;
    let synchronized = running.synchronize(&many, &[]).await;
    let to = running.synchronize("app", &[&many]).await;
    let operation = images.add_image(AddImageRequest { name: many.clone(), ..registration("a") }).await;
    let refused = [listed.err(), added.err(), named.err(), synchronized.err(), to.err(), operation.err()];
    for status in refused.map(|status| status.expect("it is refused")) {
        let percent_encoded: usize =
            status.message().bytes().map(|byte| if byte.is_ascii_graphic() || byte == b' ' { 1 } else { 3 }).sum();
        let bytes = percent_encoded + status.details().len().div_ceil(3) * 4;
        assert!(bytes < 8 << 10, "{bytes} bytes: {status:?}");
        assert!(!status.message().contains(is_unprintable), "{status:?}");
    }
}

#[tokio::test]
async fn a_name_that_a_terminal_would_act_on_is_refused() {
    let running = Site::new().start().await;
    images::write(&running.site.image(HOME, "a"), &[noise(1_000, 1)]);
    let mut images = running.images().await;
    let said = || EVIL.to_owned();
    for (field, request) in [
        ("name", AddImageRequest { name: said(), ..registration("a") }),
        ("image_version", AddImageRequest { image_version: said(), ..registration("a") }),
        ("description", AddImageRequest { description: said(), ..registration("a") }),
    ] {
        let status = images.add_image(request).await.expect_err("it can't be shown");
        refusal::read(&status).is_invalid(field, &["1b"]);
    }
    let described = AddImageRequest {
        description: "two lines\n\tand a tab".into(),
        name: "größe 力学".into(),
        ..registration("a")
    };
    images.add_image(described).await.expect("it is valid");
}

/// The command line escapes control sequences in the responses of a malicious service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_lies_does_nothing_to_a_terminal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = Server::builder().add_service(ImageServiceServer::new(Liar));
    let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let directory = tempfile::tempdir().expect("a directory");
    let cli = |arguments: &[&str]| {
        let mut command = process::command(directory.path(), arguments);
        command.env("APPFERRY_ENDPOINT", format!("http://{address}")).env("APPFERRY_TOKEN", "x");
        tokio::task::block_in_place(|| command.output().expect("the program runs"))
    };
    for arguments in [
        &["image", "list"][..],
        &["image", "list", "--json"],
        &["image", "show", "x"],
        &["regions"],
        &["image", "remove", "x"],
    ] {
        let output = cli(arguments);
        for text in [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text")) {
            assert!(!text.contains(|c| c != '\n' && is_unprintable(c)), "{arguments:?}: {text:?}");
            assert!(!text.lines().any(|line| line.starts_with("FAKE")), "{arguments:?}: {text}");
        }
    }
    serving.abort();
}

/// A service whose responses all contain the same malicious text.
struct Liar;

fn image() -> Image {
    let info = AdditionalRegionInfo {
        region_id: EVIL.into(),
        image_id: EVIL.into(),
        shown_digest: EVIL.into(),
        ..Default::default()
    };
    Image {
        image_id: EVIL.into(),
        name: "n".repeat(100_000),
        image_version: EVIL.into(),
        digest: EVIL.into(),
        superseded_by: EVIL.into(),
        additional_regions_info: vec![info],
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ImageService for Liar {
    type VerifyImageStream = tokio_stream::Empty<Result<VerifyImageResponse, Status>>;

    async fn add_image(&self, _: Request<AddImageRequest>) -> Result<Response<AddImageResponse>, Status> {
        Err(Status::internal(EVIL))
    }

    async fn get_image(&self, _: Request<GetImageRequest>) -> Result<Response<GetImageResponse>, Status> {
        Ok(Response::new(GetImageResponse { image: Some(image()) }))
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse { images: vec![image()], ..Default::default() }))
    }

    async fn get_app_versions(
        &self,
        _: Request<GetAppVersionsRequest>,
    ) -> Result<Response<GetAppVersionsResponse>, Status> {
        Err(Status::internal(EVIL))
    }

    async fn remove_image(&self, _: Request<RemoveImageRequest>) -> Result<Response<RemoveImageResponse>, Status> {
        Err(Status::internal(EVIL))
    }

    async fn verify_image(&self, _: Request<VerifyImageRequest>) -> Result<Response<Self::VerifyImageStream>, Status> {
        Err(Status::internal(EVIL))
    }

    async fn list_regions(&self, _: Request<ListRegionsRequest>) -> Result<Response<ListRegionsResponse>, Status> {
        Err(Status::internal(EVIL))
    }
}
