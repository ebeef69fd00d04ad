//! Throughput of durable `SynchronizeApp` calls through the whole stack, with authorization and tracing enabled,
//! relative to a bare tonic call.
//!
//! Every call names three regions and an image that no earlier call named. It inserts one synchronization and three
//! replicas, and is answered after the commit is durable. The bare call goes to a tonic server that does no work. One
//! process makes both kinds of calls with equal numbers of clients, in alternating rounds. Another process collects the
//! exported spans.
//!
//! `cargo bench --bench accept`, or `-- sqlite` or `-- postgres` for one database. Prints `ratio accept_256_DATABASE
//! VALUE`, the throughput as a fraction of the bare call's; `ratio accept_p99_DATABASE VALUE`, the 99th percentile of
//! the latency relative to the bare call's; and the cost of each step of a call.

mod bare;
mod collector;
#[path = "../../tests/it/harness/mod.rs"]
#[allow(dead_code, clippy::expect_used, clippy::panic, reason = "it is the tests' harness, which panics as tests do")]
mod harness;
mod parts;

use std::{
    error::Error,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use appferry::{
    app::{Role, Service},
    config::Config,
    contract::v1::{SynchronizeAppRequest, app_sync_service_client::AppSyncServiceClient},
    db,
    telemetry::Telemetry,
};
use collector::Collector;
use harness::postgres::Postgres;
use sea_orm::{ConnectionTrait as _, DbBackend};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request,
    transport::{Channel, Endpoint, Server},
};

/// The allocator that the service uses in production.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 256;
const ROUNDS: usize = 10;
const CALLS: usize = 20_000;
const WARM_UP: usize = 10_000;
/// WAL segments of 16 MiB to allocate in advance: twice as many as one run fills.
const SEGMENTS: usize = 60;
const TOKEN: &str = "bench";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if std::env::var_os(ENDPOINT).is_none() {
        return runtime.block_on(collect_for_a_child());
    }
    let telemetry = runtime.block_on(async { Telemetry::start("error") })?;
    let result = runtime.block_on(for_each_database(async |name, url| measure(&name, &url).await));
    telemetry.shutdown();
    result
}

/// Runs `measure_on` on an empty database of each selected kind.
async fn for_each_database(measure_on: impl AsyncFn(String, String) -> Result<()>) -> Result<()> {
    let selected: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |part: &str| selected.is_empty() || selected.iter().any(|name| name == part);
    if wants("sqlite") {
        let directory = tempfile::tempdir()?;
        measure_on("sqlite".to_owned(), format!("sqlite://{}/state.db", directory.path().display())).await?;
    }
    if wants("postgres") {
        let server = Postgres::start(&[("shared_buffers", "512MB"), ("max_wal_size", "8GB"), ("min_wal_size", "1GB")]);
        preallocate_wal(&server.url("postgres")).await?;
        measure_on("postgres".to_owned(), server.url("postgres")).await?;
    }
    Ok(())
}

/// Preallocates WAL segments. A server that has run for a while recycles its segments. A new server creates each
/// segment when the previous one is full, and commits wait for the creation.
async fn preallocate_wal(url: &str) -> Result<()> {
    let db = sea_orm::Database::connect(url).await?;
    for _ in 0..SEGMENTS {
        db.execute_unprepared("SELECT pg_logical_emit_message(false, 'bench', ''), pg_switch_wal()").await?;
    }
    db.execute_unprepared("CHECKPOINT").await?;
    Ok(db.close().await?)
}

/// Collects the spans of a child process that runs the measurement, then measures the steps of a call.
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
    if !status.success() {
        return Err("the measurement failed".into());
    }
    let steps = parts::listen();
    for_each_database(async |name, url| parts::measure(&name, &url, &steps).await).await
}

/// The result of one round of calls.
struct Round {
    /// Calls per second.
    rate: f64,
    /// The latency of each call.
    times: Vec<Duration>,
}

async fn measure(name: &str, url: &str) -> Result<()> {
    let images = WARM_UP + ROUNDS * CALLS;
    let (service, address) = start(url, images).await?;
    let service_clients = clients(address).await?;
    let bare_clients = clients(bare::serve()?).await?;

    let next = Arc::new(AtomicUsize::new(0));
    run(&service_clients, &next, WARM_UP).await?;
    run(&bare_clients, &Arc::default(), WARM_UP).await?;
    let (mut bare_rate, mut rate) = (0.0, 0.0);
    let (mut bare_times, mut times) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let one_bare = run(&bare_clients, &Arc::default(), CALLS).await?;
        let one = run(&service_clients, &next, CALLS).await?;
        println!(
            "{name} {round}: bare {:.0}/s, accepted {:.0}/s, ratio {:.3}",
            one_bare.rate,
            one.rate,
            one.rate / one_bare.rate
        );
        bare_rate += one_bare.rate;
        rate += one.rate;
        bare_times.extend(one_bare.times);
        times.extend(one.times);
    }
    let replicas = count(url, "replica").await?;
    assert_eq!(replicas, images * 3, "every call has left three replicas");
    println!("ratio accept_256_{name} {:.3}", rate / bare_rate);
    let (p99, bare_p99) = (percentile_99(times), percentile_99(bare_times));
    println!("{name}: the slowest hundredth took {p99:?} and more, of bare calls {bare_p99:?}");
    println!("ratio accept_p99_{name} {:.2}", p99.as_secs_f64() / bare_p99.as_secs_f64());
    // The stack alone: a call that is rejected before it reaches the database.
    let stack = run_lists(&service_clients).await?;
    println!(
        "{name}: a call through the stack alone {:.1} µs, a bare one {:.1} µs",
        1e6 / stack,
        1e6 / (bare_rate / f64::from(u32::try_from(ROUNDS)?))
    );
    service.shutdown().await;
    Ok(())
}

fn percentile_99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

async fn count(url: &str, table: &str) -> Result<usize> {
    let db = sea_orm::Database::connect(url).await?;
    let row = db
        .query_one_raw(sea_orm::Statement::from_string(
            db.get_database_backend(),
            format!("SELECT count(*) AS n FROM {table}"),
        ))
        .await?;
    let count: i64 = row.ok_or("no count")?.try_get("", "n")?;
    Ok(usize::try_from(count)?)
}

/// Registers `images` images, whose ids start with `prefix`.
async fn register(url: &str, prefix: &str, images: usize) -> Result<()> {
    let db = sea_orm::Database::connect(url).await?;
    let digest = match db.get_database_backend() {
        DbBackend::Sqlite => "hex(zeroblob(32))",
        _ => "repeat('00', 32)",
    };
    db.execute_unprepared(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {images}) \
         INSERT INTO image (id, name, version, description, kind, source, home_region, root_media_type, root_digest, root_size, size, \
         created_at) SELECT '{prefix}' || i, 'bench', '1', '', 'VM', '{prefix}' || i, 'home', 'x', \
         'sha256:' || {digest}, 1, 1, 0 FROM n"
    ))
    .await?;
    if db.get_database_backend() == DbBackend::Postgres {
        db.execute_unprepared("VACUUM ANALYZE image").await?;
    }
    Ok(db.close().await?)
}

/// Starts a service with `images` registered images and without workers, so that only accepting is measured.
async fn start(url: &str, images: usize) -> Result<(Service, SocketAddr)> {
    let regions = ["home", "one", "two", "three"]
        .map(|id| format!("[[region]]\nid = \"{id}\"\nstore = \"dir:///nowhere/{id}\"\n"));
    let config = Config::parse(&format!(
        "[database]\nurl = \"{url}\"\n[server]\nlisten = \"127.0.0.1:0\"\n[home]\nregion = \"home\"\n{}\
         [[principal]]\narn = \"acs:ram::1:user/bench\"\ntoken_sha256 = \"{}\"\npolicies = [\"sync\"]\n\
         [[policy]]\nname = \"sync\"\ndocument = '{{\"Version\":\"1\",\"Statement\":[{{\"Effect\":\"Allow\",\
         \"Action\":\"ehpc:SynchronizeApp\",\"Resource\":\"*\"}}]}}'\n",
        regions.concat(),
        hex::encode(Sha256::digest(TOKEN)),
    ))?;
    db::migrate(&config.database.settings()).await?;
    register(url, "ci-vm-", images).await?;
    let service = Service::start(&config, Role::Server).await?;
    let address = service.address().ok_or("it does not listen")?;
    Ok((service, address))
}

async fn clients(address: SocketAddr) -> Result<Vec<AppSyncServiceClient<Channel>>> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
        clients.push(AppSyncServiceClient::new(channel));
    }
    Ok(clients)
}

/// Makes `calls` calls, [`IN_FLIGHT`] at a time.
async fn run(clients: &[AppSyncServiceClient<Channel>], next: &Arc<AtomicUsize>, calls: usize) -> Result<Round> {
    let started = Instant::now();
    let last = next.load(Ordering::Relaxed) + calls;
    let mut callers: JoinSet<Result<Vec<Duration>>> = JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let mut client = clients[caller % clients.len()].clone();
        let next = Arc::clone(next);
        callers.spawn(async move {
            let mut times = Vec::new();
            loop {
                let app = next.fetch_add(1, Ordering::Relaxed);
                if app >= last {
                    return Ok(times);
                }
                let mut request = Request::new(SynchronizeAppRequest {
                    app_id: format!("ci-vm-{app}"),
                    target_region_ids: vec!["one".into(), "two".into(), "three".into()],
                    client_token: String::new(),
                    overwrite: false,
                });
                request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse()?);
                let started = Instant::now();
                let response = client.synchronize_app(request).await?;
                times.push(started.elapsed());
                assert!(!response.get_ref().request_id.is_empty());
            }
        });
    }
    let mut times = Vec::with_capacity(calls);
    while let Some(ended) = callers.join_next().await {
        times.extend(ended??);
    }
    next.store(last, Ordering::Relaxed);
    let elapsed: Duration = started.elapsed();
    Ok(Round { rate: f64::from(u32::try_from(calls)?) / elapsed.as_secs_f64(), times })
}

/// Makes calls that do not reach the database, [`IN_FLIGHT`] at a time, and returns the number of calls per second.
async fn run_lists(clients: &[AppSyncServiceClient<Channel>]) -> Result<f64> {
    let started = Instant::now();
    let mut callers: JoinSet<Result<()>> = JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let mut client = clients[caller % clients.len()].clone();
        callers.spawn(async move {
            for _ in 0..CALLS / IN_FLIGHT {
                // The unknown region is rejected before the database is queried.
                let mut request = Request::new(SynchronizeAppRequest {
                    app_id: "ci-vm-1".to_owned(),
                    target_region_ids: vec!["nowhere".into()],
                    client_token: String::new(),
                    overwrite: false,
                });
                request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse()?);
                if client.synchronize_app(request).await.is_ok() {
                    return Err("a region that is not configured was accepted".into());
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(f64::from(u32::try_from(CALLS / IN_FLIGHT * IN_FLIGHT)?) / started.elapsed().as_secs_f64())
}
