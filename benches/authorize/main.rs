//! The cost of one authorization decision, and the cost of authentication and authorization in a call that does no
//! other work.
//!
//! `cargo bench --bench authorize`. First compares ten million random decisions with the reference evaluator. Then
//! prints:
//!
//! - `ratio authorize_overhead VALUE`: the latency of a bare call with a bearer token, two hundred principals and a
//!   decision by a policy of three statements, relative to the same call without them, in alternating rounds;
//! - the same ratio with every decision written to the audit log;
//! - the time of a decision by a thousand statements with conditions, relative to comparing as many strings.

#[path = "../accept/bare.rs"]
mod bare;
#[path = "../../tests/it/policies"]
#[allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "it is the tests' comparison, which panics as tests do"
)]
mod policies {
    pub mod compare;
    pub mod generate;
    pub mod naive;
}

use std::{
    convert::Infallible,
    error::Error,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use appferry::{
    audit::{Audit, Destination},
    config::Config,
    contract::{
        Contract,
        v1::{
            SynchronizeAppRequest, app_sync_service_client::AppSyncServiceClient,
            app_sync_service_server::AppSyncServiceServer,
        },
    },
    db::{self, Db},
    domain::Timestamp,
    identity::{CurrentAuthenticator, JwksFetcher},
    ram::{AttachedPolicy, Attachment, Context, Document, Keys, Policies, Policy, Request},
    server::{self, AccessLayers, AuthThrottle, Deadlines, Dependencies},
    storage::{Backend, Stores},
};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    transport::{Channel, Endpoint, Server},
};
use tower::{Layer as _, Service};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const DECISIONS: usize = 10_000_000;
const STATEMENTS: usize = 1_000;
const PRINCIPALS: usize = 200;
const ROUNDS: usize = 300;
const CALLS: usize = 2_000;
const WARM_UP: usize = 256;
const ALONE: u32 = 20_000;
const ALONE_ROUNDS: usize = 20;
const IN_FLIGHT: usize = 64;
const TOKEN: &str = "bench";

fn main() -> Result<()> {
    let began = Instant::now();
    let halves = [11, 12].map(|seed| {
        std::thread::spawn(move || policies::compare::compare(seed, DECISIONS / 2, serde_json::Value::clone))
    });
    for half in halves {
        if let Some(difference) = half.join().map_err(|_| "the comparison failed")? {
            return Err(difference.into());
        }
    }
    println!("{DECISIONS} decisions compared with the rules in {:?}: no difference", began.elapsed());
    decide()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(overhead())
}

/// Compiles a thousand statements, of which only the last one allows the call.
fn many() -> Result<Policies> {
    let statements: Vec<String> = (0..STATEMENTS)
        .map(|n| {
            let network =
                if n + 1 == STATEMENTS { "10.0.0.0/8".to_owned() } else { format!("192.168.{}.0/24", n % 256) };
            format!(
                r#"{{"Effect":"Allow","Action":"ehpc:Sync*","Resource":"*","Condition":{{
                "IpAddress":{{"acs:SourceIp":"{network}"}},"DateLessThan":{{"acs:CurrentTime":"2999-01-01T00:00:00Z"}},
                "StringLike":{{"acs:PrincipalARN":"acs:ram::*:user/*"}}}}}}"#
            )
        })
        .collect();
    // Split into as many documents as the length limit of a document requires.
    let documents = statements.chunks(100).map(|some| format!(r#"{{"Version":"1","Statement":[{}]}}"#, some.join(",")));
    let attached = documents.map(|text| {
        let document = Document::parse(&text, &Keys::default())?;
        let policy = Arc::new(Policy { name: "many".into(), document });
        Ok::<_, appferry::ram::DocumentError>(AttachedPolicy { policy, to: Attachment::Principal })
    });
    Ok(Policies(attached.collect::<std::result::Result<_, _>>()?))
}

fn decide() -> Result<()> {
    let policies = many()?;
    let context = Context {
        source_ip: Some(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3))),
        current_time: Some(Timestamp::from_millis(1_800_000_000_000)),
        secure_transport: Some(true),
        principal: Some("acs:ram::1234:user/ops"),
        claims: &[],
    };
    let request = Request { action: "ehpc:SynchronizeApp", resource: "*", context: &context };
    let count = 2_000;
    let began = Instant::now();
    for _ in 0..count {
        if !black_box(&policies).decide(black_box(&request)).is_allowed() {
            return Err("the last statement allows it".into());
        }
    }
    let one = began.elapsed() / count;
    println!("a decision by {STATEMENTS} statements with three conditions each: {one:?}");
    // The baseline: comparing as many action names byte by byte.
    let actions: Vec<String> = (0..STATEMENTS).map(|n| format!("ehpc:SynchronizeAp{}", n % 10)).collect();
    let began = Instant::now();
    for _ in 0..count {
        let found = black_box(&actions).iter().any(|action| action.eq_ignore_ascii_case(black_box(request.action)));
        black_box(found);
    }
    let floor = began.elapsed() / count;
    println!("ratio decide_1000_of_comparing {:.2}", one.as_secs_f64() / floor.as_secs_f64());
    let allocated = allocation_counter::measure(|| drop(black_box(policies.decide(&request))));
    println!("allocations of a decision: {}", allocated.count_total);
    if allocated.count_total == 0 { Ok(()) } else { Err("a decision needs memory".into()) }
}

/// A configuration with many principals, one of which makes all calls.
fn config(database: &str) -> Result<Config> {
    let principals: Vec<String> = (0..PRINCIPALS)
        .map(|n| {
            let token = if n == PRINCIPALS / 2 { TOKEN.to_owned() } else { format!("token-{n}") };
            format!(
                "[[principal]]\narn = \"acs:ram::1:user/u{n}\"\ntoken_sha256 = \"{}\"\ngroups = [\"all\"]\n",
                hex::encode(Sha256::digest(token))
            )
        })
        .collect();
    Ok(Config::parse(&format!(
        "[database]\nurl = \"{database}\"\n[home]\nregion = \"home\"\n[[region]]\nid = \"home\"\nstore = \"dir:///nowhere\"\n\
         {}[[group]]\nname = \"all\"\npolicies = [\"three\"]\n[[policy]]\nname = \"three\"\ndocument = '''{}'''\n",
        principals.concat(),
        r#"{"Version":"1","Statement":[
            {"Effect":"Deny","Action":"ehpc:Remove*","Resource":"*"},
            {"Effect":"Allow","Action":"ehpc:Get*","Resource":"acs:ehpc:*:*:app/*"},
            {"Effect":"Allow","Action":"ehpc:SynchronizeApp","Resource":"*",
             "Condition":{"DateLessThan":{"acs:CurrentTime":"2999-01-01T00:00:00Z"}}}]}"#
    ))?)
}

/// Serves the bare service behind the authentication and authorization layers.
fn serve_behind(gate: AccessLayers) -> Result<SocketAddr> {
    let (incoming, address) = bare::listen()?;
    let mut server = Server::builder().layer(gate);
    tokio::spawn(server.add_service(AppSyncServiceServer::new(bare::Bare)).serve_with_incoming(incoming));
    Ok(address)
}

/// Calls a service directly on this thread, and returns the time of one call in microseconds.
async fn alone<S>(mut service: S) -> Result<f64>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    let mut best = f64::INFINITY;
    for _ in 0..ALONE_ROUNDS {
        let began = Instant::now();
        for _ in 0..ALONE {
            let mut request = http::Request::new(Body::empty());
            *request.uri_mut() = http::Uri::from_static("/appferry.v1.AppSyncService/SynchronizeApp");
            request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse()?);
            std::future::poll_fn(|context| service.poll_ready(context)).await?;
            let answer = service.call(request).await?;
            if answer.headers().contains_key("grpc-status") {
                return Err("the call was refused".into());
            }
        }
        best = best.min(began.elapsed().as_secs_f64() * 1e6 / f64::from(ALONE));
    }
    Ok(best)
}

async fn client(address: SocketAddr) -> Result<AppSyncServiceClient<Channel>> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
    Ok(AppSyncServiceClient::new(channel))
}

/// Makes calls over a new connection and returns the time of one call in microseconds. The thread that a connection is
/// assigned to is random and matters more than the measured difference, so every round uses a new connection.
async fn run(address: SocketAddr) -> Result<f64> {
    let client = client(address).await?;
    call(&client, WARM_UP).await?;
    let began = Instant::now();
    call(&client, CALLS).await?;
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(u32::try_from(CALLS)?))
}

async fn call(client: &AppSyncServiceClient<Channel>, calls: usize) -> Result<()> {
    let mut callers: JoinSet<Result<()>> = JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let mut client = client.clone();
        callers.spawn(async move {
            for _ in (caller..calls).step_by(IN_FLIGHT) {
                let mut request = tonic::Request::new(SynchronizeAppRequest {
                    app_id: "ci-vm-1".into(),
                    target_region_ids: vec!["one".into(), "two".into(), "three".into()],
                    client_token: String::new(),
                    overwrite: false,
                });
                request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse()?);
                client.synchronize_app(request).await?;
            }
            Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

async fn overhead() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = config(&format!("sqlite://{}/state.db", directory.path().display()))?;
    db::migrate(&config.database.settings()).await?;
    let stop = CancellationToken::new();
    let (state, tasks) = Db::open(&config.database.settings(), config.regions()?, stop.clone()).await?;
    let second = Duration::from_secs(1);
    let contract = Contract::load()?;
    let principals = Arc::new(CurrentAuthenticator::new(config.directory(&mut JwksFetcher::default())?));
    let mut writing = Vec::new();
    // One server with an audit log that records none of the allowed calls, and one with an audit log that records all.
    let mut servers = vec![bare::serve()?];
    let inner =
        || tower::service_fn(async |_: http::Request<Body>| Ok::<_, Infallible>(http::Response::new(Body::empty())));
    let mut by_itself = vec![alone(inner()).await?];
    for (name, sampled) in [("nothing", 0.0), ("all", 1.0)] {
        let log = Destination::File(directory.path().join(name));
        let (audit, task) = Audit::start(log, sampled)?;
        writing.push(task);
        let dependencies = Dependencies {
            plaintext: false,
            contract,
            authenticator: Arc::clone(&principals),
            auth_throttle: Arc::new(AuthThrottle::new(1, audit.clone(), appferry::system_clock())),
            audit,
            state: state.clone(),
            backend: Backend::Stores(Stores::new(Vec::new())),
            clock: appferry::system_clock(),
            max_in_flight: IN_FLIGHT,
            deadlines: Deadlines { default: second, longest: second, stream: second },
            stop: stop.clone(),
        };
        servers.push(serve_behind(server::access_layers(&dependencies))?);
        by_itself.push(alone(server::access_layers(&dependencies).layer(inner())).await?);
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    for round in 0..ROUNDS {
        // Rotates the order, so that each variant runs first, second and last equally often.
        for turn in 0..servers.len() {
            let whose = (round + turn) % servers.len();
            times[whose].push(run(servers[whose]).await?);
        }
    }
    let middle = |mut values: Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        let half = &values[values.len() / 4..values.len() * 3 / 4];
        half.iter().sum::<f64>() / f64::from(u32::try_from(half.len()).unwrap_or(u32::MAX))
    };
    let [bare, authorized, audited] = [0, 1, 2].map(|whose| middle(times[whose].clone()));
    println!(
        "a bare call {bare:.1} µs, with authentication and authorization {authorized:.1} µs, with the audit log too {audited:.1} µs"
    );
    let [nothing, deciding, writing_down] = [0, 1, 2].map(|whose| by_itself[whose]);
    println!(
        "by themselves, authentication and authorization {:.2} µs, with the audit log too {:.2} µs",
        deciding - nothing,
        writing_down - nothing
    );
    println!("ratio authorize_of_a_bare_call {:.3}", (deciding - nothing) / bare);
    println!("ratio authorize_and_audit_of_a_bare_call {:.3}", (writing_down - nothing) / bare);
    println!("ratio authorize_overhead {:.3}", authorized / bare);
    println!("ratio authorize_and_audit_overhead {:.3}", audited / bare);
    stop.cancel();
    tasks.join().await;
    drop(writing);
    Ok(())
}
