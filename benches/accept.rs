//! Durable `SynchronizeApp` calls through the whole stack, with authorization and tracing on, beside a bare tonic call.
//!
//! Every call is for an image that was never asked for before, to three regions: it inserts one synchronization, three targets
//! and three replicas, and is answered after they are on the disk. The bare call goes to a tonic server that does nothing. Both
//! are made by the same clients, in turns, in one process. Spans are exported to a collector in a process of its own.
//!
//! Prints `ratio accept_256 VALUE`: calls a second, as a part of the bare calls a second.

use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use appferry::{
    config::Config,
    contract::v1::{SynchronizeAppRequest, SynchronizeAppResponse, app_sync_service_client::AppSyncServiceClient},
    service::{Role, Service},
    state,
    telemetry::Telemetry,
};
use sea_orm::ConnectionTrait as _;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;

/// The one that the service runs with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 256;
const ROUNDS: usize = 10;
const CALLS: usize = 20_000;
const WARM_UP: usize = 10_000;
const TOKEN: &str = "bench";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if std::env::var_os(ENDPOINT).is_none() {
        return runtime.block_on(collect_for_a_child());
    }
    let telemetry = runtime.block_on(async { Telemetry::start("error") })?;
    let result = runtime.block_on(measure());
    telemetry.shutdown();
    result
}

/// Runs the measurement as a child that exports its spans to this process.
async fn collect_for_a_child() -> Result<()> {
    let spans = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let collector = Collector(Arc::clone(&spans));
    tokio::spawn(Server::builder().add_service(collector).serve_with_incoming(TcpListenerStream::new(listener)));
    let mut child = Command::new(std::env::current_exe()?);
    child.args(std::env::args_os().skip(1)).env(ENDPOINT, format!("http://{address}"));
    let status = tokio::task::spawn_blocking(move || child.status()).await??;
    println!("spans that the collector was sent: {}", spans.load(Ordering::Relaxed));
    if status.success() { Ok(()) } else { Err("the measurement failed".into()) }
}

/// Counts spans without looking into them: what a collector does with them is not the service's work.
#[derive(Clone)]
struct Collector(Arc<AtomicUsize>);

/// `ExportTraceServiceRequest`, down to the spans.
#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    spans: Vec<bytes::Bytes>,
}

impl UnaryService<Export> for Collector {
    type Response = ();
    type Future = std::future::Ready<std::result::Result<Response<()>, Status>>;

    fn call(&mut self, request: Request<Export>) -> Self::Future {
        let scopes = request.get_ref().resources.iter().flat_map(|r| &r.scopes);
        self.0.fetch_add(scopes.map(|s| s.spans.len()).sum(), Ordering::Relaxed);
        std::future::ready(Ok(Response::new(())))
    }
}

impl tower::Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let collector = self.clone();
        let mut grpc = Grpc::new(ProstCodec::<(), Export>::default());
        Box::pin(async move { Ok(grpc.unary(collector, request).await) })
    }
}

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

async fn measure() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let images = WARM_UP + ROUNDS * CALLS;
    let (service, address) = start(directory.path(), images).await?;
    let service_clients = clients(address).await?;
    let bare_clients = clients(bare().await?).await?;

    let next = Arc::new(AtomicUsize::new(0));
    run(&service_clients, &next, WARM_UP).await?;
    run(&bare_clients, &Arc::default(), WARM_UP).await?;
    let (mut bare_rate, mut rate) = (0.0, 0.0);
    for round in 1..=ROUNDS {
        let one_bare = run(&bare_clients, &Arc::default(), CALLS).await?;
        let one = run(&service_clients, &next, CALLS).await?;
        println!("round {round}: bare {one_bare:.0}/s, accepted {one:.0}/s, ratio {:.3}", one / one_bare);
        bare_rate += one_bare;
        rate += one;
    }
    let replicas = count(directory.path(), "replica").await?;
    assert_eq!(replicas, images * 3, "every call has left three replicas");
    println!("ratio accept_256 {:.3}", rate / bare_rate);
    service.shutdown().await;
    Ok(())
}

fn database(directory: &std::path::Path) -> String {
    format!("sqlite://{}/state.db", directory.display())
}

async fn count(directory: &std::path::Path, table: &str) -> Result<usize> {
    let db = sea_orm::Database::connect(database(directory)).await?;
    let row = db
        .query_one_raw(sea_orm::Statement::from_string(
            db.get_database_backend(),
            format!("SELECT count(*) AS n FROM {table}"),
        ))
        .await?;
    let count: i64 = row.ok_or("no count")?.try_get("", "n")?;
    Ok(usize::try_from(count)?)
}

/// The service with as many images registered, without workers: accepting alone is measured.
async fn start(directory: &std::path::Path, images: usize) -> Result<(Service, SocketAddr)> {
    let regions = ["home", "one", "two", "three"]
        .map(|id| format!("[[region]]\nid = \"{id}\"\nstore = \"dir://{}/{id}\"\n", directory.display()));
    let config = Config::parse(&format!(
        "[database]\nurl = \"{}\"\n[server]\nlisten = \"127.0.0.1:0\"\n[home]\nregion = \"home\"\n{}\
         [[principal]]\narn = \"acs:ram::1:user/bench\"\ntoken_sha256 = \"{}\"\npolicies = [\"sync\"]\n\
         [[policy]]\nname = \"sync\"\ndocument = '{{\"Version\":\"1\",\"Statement\":[{{\"Effect\":\"Allow\",\
         \"Action\":\"ehpc:SynchronizeApp\",\"Resource\":\"*\"}}]}}'\n",
        database(directory),
        regions.concat(),
        hex::encode(Sha256::digest(TOKEN)),
    ))?;
    state::migrate(&state::Settings::new(config.database.url.clone())).await?;
    let db = sea_orm::Database::connect(&config.database.url).await?;
    db.execute_unprepared(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {images}) \
         INSERT INTO image SELECT 'ci-vm-' || i, 'bench', '1', '', 'VM', 'ci-vm-' || i, 'home', 'x', 'sha256:' || \
         hex(zeroblob(32)), 1, 1, 0 FROM n"
    ))
    .await?;
    db.close().await?;
    let service = Service::start(&config, Role::Server).await?;
    let address = service.address().ok_or("it does not listen")?;
    Ok((service, address))
}

/// A tonic server that does nothing but answer.
async fn bare() -> Result<SocketAddr> {
    use appferry::contract::v1::app_sync_service_server::AppSyncServiceServer;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(
        Server::builder().tcp_nodelay(true).add_service(AppSyncServiceServer::new(Bare)).serve_with_incoming(incoming),
    );
    Ok(address)
}

async fn clients(address: SocketAddr) -> Result<Vec<AppSyncServiceClient<Channel>>> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
        clients.push(AppSyncServiceClient::new(channel));
    }
    Ok(clients)
}

/// Makes calls, as many at a time as are to be in flight, and returns how many a second were answered.
async fn run(clients: &[AppSyncServiceClient<Channel>], next: &Arc<AtomicUsize>, calls: usize) -> Result<f64> {
    let started = Instant::now();
    let last = next.load(Ordering::Relaxed) + calls;
    let mut callers: JoinSet<Result<()>> = JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let mut client = clients[caller % clients.len()].clone();
        let next = Arc::clone(next);
        callers.spawn(async move {
            loop {
                let app = next.fetch_add(1, Ordering::Relaxed);
                if app >= last {
                    return Ok(());
                }
                let mut request = Request::new(SynchronizeAppRequest {
                    app_id: format!("ci-vm-{app}"),
                    target_region_ids: vec!["one".into(), "two".into(), "three".into()],
                    client_token: String::new(),
                });
                request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse()?);
                let response = client.synchronize_app(request).await?;
                assert!(!response.get_ref().request_id.is_empty());
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    next.store(last, Ordering::Relaxed);
    let elapsed: Duration = started.elapsed();
    Ok(f64::from(u32::try_from(calls)?) / elapsed.as_secs_f64())
}

struct Bare;

#[tonic::async_trait]
impl appferry::contract::v1::app_sync_service_server::AppSyncService for Bare {
    async fn synchronize_app(
        &self,
        _: Request<SynchronizeAppRequest>,
    ) -> std::result::Result<Response<SynchronizeAppResponse>, Status> {
        Ok(Response::new(SynchronizeAppResponse { request_id: "0193D5A0-0000-7000-8000-000000000000".into() }))
    }

    async fn get_synchronization(
        &self,
        _: Request<appferry::contract::v1::GetSynchronizationRequest>,
    ) -> std::result::Result<Response<appferry::contract::v1::GetSynchronizationResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_synchronizations(
        &self,
        _: Request<appferry::contract::v1::ListSynchronizationsRequest>,
    ) -> std::result::Result<Response<appferry::contract::v1::ListSynchronizationsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchSynchronizationStream =
        tokio_stream::Empty<std::result::Result<appferry::contract::v1::WatchSynchronizationResponse, Status>>;

    async fn watch_synchronization(
        &self,
        _: Request<appferry::contract::v1::WatchSynchronizationRequest>,
    ) -> std::result::Result<Response<Self::WatchSynchronizationStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_synchronization(
        &self,
        _: Request<appferry::contract::v1::CancelSynchronizationRequest>,
    ) -> std::result::Result<Response<appferry::contract::v1::CancelSynchronizationResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
