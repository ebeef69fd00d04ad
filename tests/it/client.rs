//! The client library and its examples: transport failures are retried, and rejections are returned to the caller.

use std::{
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use appferry::{
    app::Role,
    client::{Client, Error},
    contract::{
        ApiError, ApiErrorCode, Contract,
        v1::{
            self, AddImageRequest, ErrorCode, ListSynchronizationsRequest, RegionState, SynchronizationState,
            SynchronizeAppRequest, SynchronizeAppResponse,
            app_sync_service_server::{AppSyncService, AppSyncServiceServer},
        },
    },
    domain::{Backoff, RequestId},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

use crate::harness::{
    images::noise,
    process,
    site::{self, Running, Site},
    tcp_proxy::TcpProxy,
    until,
};

async fn client(running: &Running) -> Client {
    Client::builder(format!("http://{}", running.address)).token(site::ADMIN).connect().await.expect("it answers")
}

fn ask(app_id: &str, regions: &[&str]) -> SynchronizeAppRequest {
    let target_region_ids = regions.iter().map(|&region| region.to_owned()).collect();
    SynchronizeAppRequest { app_id: app_id.to_owned(), target_region_ids, ..Default::default() }
}

#[tokio::test]
async fn a_refusal_is_a_row_of_the_table_with_what_is_wrong() {
    let running = Site::new().start_as(Role::Server).await;
    let client = client(&running).await;
    let error = client.synchronize_app(ask("nothing", &[])).await.expect_err("there is none");
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(
        (refusal.error, refusal.reason.as_str()),
        (Some(ApiErrorCode::SynchronizeApp(ErrorCode::ImageNotFound)), "ImageNotFound")
    );
    let id = refusal.request_id.as_deref().expect("an id");
    assert!(id.parse::<RequestId>().is_ok() && error.to_string().ends_with(&format!("(request {id})")), "{error}");
    let error = client.get_synchronization("nonsense").await.expect_err("no id");
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(refusal.violations.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), ["request_id"]);
    let error = client.add_image(AddImageRequest::default()).await.expect_err("nothing to add");
    assert!(error.refusal().is_some(), "{error}");
    running.stop().await;

    let nobody = Client::builder("http://127.0.0.1:1").connect().await.expect_err("nothing listens there");
    assert!(matches!(nobody, Error::Unreachable { .. }), "{nobody}");
    let nonsense = Client::builder("http://a b").connect().await.expect_err("no URL");
    assert!(matches!(nonsense, Error::Endpoint { .. }), "{nonsense}");
    let channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
    let token = Client::builder("").token("a\nb").over(channel).expect_err("no token");
    assert!(matches!(&token, Error::Token) && !token.to_string().contains("a\nb"), "{token}");
}

/// A service that rejects a number of calls before it accepts one.
#[derive(Clone)]
struct Busy {
    contract: &'static Contract,
    refusals: usize,
    retry_after: Duration,
    received: Arc<Mutex<Vec<(Instant, String)>>>,
}

type Watch = tokio_stream::Empty<Result<v1::WatchSynchronizationResponse, Status>>;

#[tonic::async_trait]
impl AppSyncService for Busy {
    async fn synchronize_app(
        &self,
        request: Request<SynchronizeAppRequest>,
    ) -> Result<Response<SynchronizeAppResponse>, Status> {
        let mut received = self.received.lock().expect("no panic");
        received.push((Instant::now(), request.into_inner().client_token));
        let id = appferry::new_request_id();
        if received.len() <= self.refusals {
            let busy = ApiError::unavailable("busy", self.retry_after);
            return Err(busy.status(&self.contract.errors, id));
        }
        Ok(Response::new(SynchronizeAppResponse { request_id: id.to_string() }))
    }

    type WatchSynchronizationStream = Watch;

    async fn get_synchronization(
        &self,
        _: Request<v1::GetSynchronizationRequest>,
    ) -> Result<Response<v1::GetSynchronizationResponse>, Status> {
        Ok(Response::new(v1::GetSynchronizationResponse::default()))
    }

    async fn list_synchronizations(
        &self,
        _: Request<ListSynchronizationsRequest>,
    ) -> Result<Response<v1::ListSynchronizationsResponse>, Status> {
        Ok(Response::new(v1::ListSynchronizationsResponse::default()))
    }

    async fn watch_synchronization(
        &self,
        _: Request<v1::WatchSynchronizationRequest>,
    ) -> Result<Response<Watch>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn cancel_synchronization(
        &self,
        _: Request<v1::CancelSynchronizationRequest>,
    ) -> Result<Response<v1::CancelSynchronizationResponse>, Status> {
        Ok(Response::new(v1::CancelSynchronizationResponse::default()))
    }
}

async fn busy(refusals: usize, retry_after: Duration) -> (Busy, String) {
    let contract = Contract::load().expect("the contract");
    let busy = Busy { contract, refusals, retry_after, received: Arc::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let service = AppSyncServiceServer::new(busy.clone());
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    (busy, endpoint)
}

#[tokio::test]
async fn a_call_is_repeated_when_the_service_says_so_under_one_token() {
    let retry_after = Duration::from_millis(300);
    let (busy, endpoint) = busy(2, retry_after).await;
    let backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1), attempts: 3 };
    let client = Client::builder(endpoint).backoff(backoff).connect().await.expect("it answers");
    client.synchronize_app(ask("a", &[])).await.expect("it is accepted at last");
    let received = busy.received.lock().expect("no panic").clone();
    let [(first, token), (second, again), (third, at_last)] = &received[..] else { panic!("{received:?}") };
    assert!(!token.is_empty() && token == again && token == at_last, "{received:?}");
    assert!(*second - *first >= retry_after && *third - *second >= retry_after);
    // A response without a field that the contract guarantees is an error. The client substitutes no default.
    let error = client.get_synchronization("x").await.expect_err("there is none in it");
    assert!(matches!(error, Error::Incomplete(_)), "{error}");
}

#[tokio::test]
async fn a_call_is_given_up_before_its_deadline_and_after_its_last_attempt() {
    // The retry delay exceeds the deadline: the call fails now, not at the deadline.
    let deadline = Duration::from_secs(60);
    let (patient, endpoint) = busy(usize::MAX, deadline).await;
    let client = Client::builder(&endpoint).deadline(deadline).connect().await.expect("it answers");
    let began = Instant::now();
    let error = client.synchronize_app(ask("a", &[])).await.expect_err("it is never accepted");
    assert_eq!(
        error.refusal().and_then(|r| r.error),
        Some(ApiErrorCode::SynchronizeApp(ErrorCode::ServiceUnavailable))
    );
    assert!(began.elapsed() < deadline / 2, "{:?}", began.elapsed());
    assert_eq!(patient.received.lock().expect("no panic").len(), 1);
    let (hasty, endpoint) = busy(usize::MAX, Duration::from_millis(1)).await;
    let backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1), attempts: 2 };
    let client = Client::builder(&endpoint).backoff(backoff).connect().await.expect("it answers");
    client.synchronize_app(ask("a", &[])).await.expect_err("it is never accepted");
    assert_eq!(hasty.received.lock().expect("no panic").len(), 2);
}

#[tokio::test]
async fn a_watch_goes_on_through_cut_connections_and_a_service_that_is_replaced() {
    let running = Site::new().start_as(Role::Server).await;
    let tcp_proxy = TcpProxy::start(running.address.port()).await;
    let builder = Client::builder(format!("http://{}", tcp_proxy.address)).token(site::ADMIN);
    let client = builder.connect().await.expect("it answers");
    let app = running.add("a", &[noise(100_000, 1)]).await;
    let id = client.synchronize_app(ask(&app, &["cn-beijing", "cn-shanghai"])).await.expect("it is accepted");
    let mut watch = client.watch(&id);
    let first = watch.next().await.expect("a snapshot").expect("a snapshot");
    assert!(first.regions.iter().all(|region| region.state() == RegionState::Pending));
    let connections = tcp_proxy.connections();
    tcp_proxy.cut();
    // The library reconnects. The watch yields no snapshot, because nothing has changed.
    tokio::select! {
        next = watch.next() => panic!("nothing has changed: {next:?}"),
        () = until("a new connection", async || (tcp_proxy.connections() > connections).then_some(())) => {}
    }
    let next = tokio::time::timeout(Duration::from_millis(500), watch.next()).await;
    assert!(next.is_err(), "nothing has changed: {next:?}");
    // The watch continues once a service with workers takes over.
    let running = running.stop().await.start().await;
    tcp_proxy.set_upstream(running.address.port());
    tcp_proxy.cut();
    let mut last = first;
    while let Some(snapshot) = watch.next().await.expect("it goes on") {
        assert_ne!(snapshot, last, "a snapshot is sent when something has changed");
        last = snapshot;
    }
    assert_eq!(last.state(), SynchronizationState::Succeeded);
    assert!(watch.next().await.expect("nothing").is_none(), "it has ended");
    assert_eq!(client.wait(&id).await.expect("it is answered"), last);
    running.stop().await;
}

#[tokio::test]
async fn calls_through_connections_that_are_cut_all_the_time_are_accepted_once_each() {
    let running = Site::new().start_as(Role::Server).await;
    let tcp_proxy = TcpProxy::start(running.address.port()).await;
    // Every cut may hit a call, so the number of retries is unlimited here.
    let backoff = Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(200), attempts: 1_000 };
    let builder = Client::builder(format!("http://{}", tcp_proxy.address)).token(site::ADMIN).backoff(backoff);
    let client = builder.connect().await.expect("it answers");
    let app = running.add("a", &[noise(10, 1)]).await;
    let uncut = self::client(&running).await;
    // Cuts the connections only after more calls have been accepted, so that the test makes progress on any machine.
    let cutting = async {
        for accepted in (3..40).step_by(3) {
            let list = ListSynchronizationsRequest { page_size: accepted, ..Default::default() };
            let enough = usize::try_from(accepted).expect("small");
            until("more accepted calls", async || {
                let page = uncut.list_synchronizations(list.clone()).await.expect("a list");
                (page.synchronizations.len() >= enough).then_some(())
            })
            .await;
            tcp_proxy.cut();
        }
    };
    let calls = (0..40).map(|_| client.synchronize_app(ask(&app, &["cn-beijing"])));
    let (ids, ()) = tokio::join!(futures_util::future::try_join_all(calls), cutting);
    let mut ids: Vec<String> = ids.expect("all are accepted");
    ids.sort();
    let list = ListSynchronizationsRequest { page_size: 1_000, ..Default::default() };
    let found = client.list_synchronizations(list).await.expect("they are listed").synchronizations;
    let mut known: Vec<String> = found.into_iter().map(|s| s.request_id).collect();
    known.sort();
    assert_eq!(known, ids, "as many as calls, and no more");
    running.stop().await;
}

/// Runs an example against a service.
fn example(mut command: Command, running: &Running, app: &str) -> Output {
    process::clean(&mut command)
        .args([app, "cn-beijing"])
        .env("APPFERRY_ENDPOINT", format!("http://{}", running.address))
        .env("APPFERRY_TOKEN", site::ADMIN);
    command.output().expect("it runs")
}

/// Checks the output of an example for a successful copy and for an unknown image.
async fn shows(running: Running, command: impl Fn() -> Command + Send + Sync + 'static) {
    let app = running.add("a", &[noise(10, 1)]).await;
    let (running, output, refused) = tokio::task::spawn_blocking(move || {
        let output = example(command(), &running, &app);
        let refused = example(command(), &running, "nothing");
        (running, output, refused)
    })
    .await
    .expect("they end");
    let text = process::stdout(&output);
    let (accepted, rest) = text.split_once('\n').expect("lines");
    let id = accepted.strip_prefix("accepted as ").expect("an id");
    assert!(id.parse::<RequestId>().is_ok(), "{text}");
    assert!(rest.trim_end().ends_with("cn-beijing AVAILABLE"), "{text}");
    let said = process::stderr(&refused);
    assert!(!refused.status.success() && said.contains("ImageNotFound"), "{said}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_rust_carries_an_image() {
    // Cargo builds the examples together with all tests, but not if this test alone is selected.
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--quiet", "--example", "synchronize"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    process::stdout(&build.output().expect("cargo runs"));
    let program = Path::new(process::APPFERRY).with_file_name("examples").join("synchronize");
    shows(Site::new().start().await, move || Command::new(&program)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_python_carries_an_image() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".tools/bin/python");
    let generated = tempfile::tempdir().expect("a directory");
    let protos = ["app_sync", "authorization", "error", "image"].map(|name| format!("proto/appferry/v1/{name}.proto"));
    let out = generated.path().to_str().expect("text");
    let outs = [format!("--python_out={out}"), format!("--grpc_python_out={out}")];
    let mut protoc = Command::new(&python);
    protoc.args(["-m", "grpc_tools.protoc", "-I", "proto"]).args(outs).args(protos).current_dir(root);
    process::stdout(&protoc.output().expect("it runs: source scripts/tools"));
    let path = generated.path().to_owned();
    shows(Site::new().start().await, move || {
        let mut command = Command::new(&python);
        command.arg(root.join("examples/python/synchronize.py")).env("PYTHONPATH", &path);
        command
    })
    .await;
}
