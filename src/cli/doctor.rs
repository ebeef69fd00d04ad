//! `appferry doctor`: checks everything that the service needs, and suggests remedies.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use futures_util::future::join_all;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Error, Result, data_dir, leftovers, print, proxy_advice};
use crate::{
    app,
    config::{Config, RegionProxy},
    db::{Db, RegionStore},
    domain::{RegionId, with_causes},
    storage::{self, Backend, Store},
    telemetry,
};

/// The time limit of each check.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
/// The tolerated difference between the clocks of this machine, which checks tokens and signatures, and of the
/// database, which checks leases.
const SKEW: Duration = Duration::from_secs(5);
/// The name of an image that no region has, which the check of ECS looks up.
const PROBE_IMAGE: &str = "appferry-probe";

#[derive(Debug, Args)]
pub struct Arguments {
    /// The configuration file. Default: that of ./appferry-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, one line per check.
    #[arg(long)]
    json: bool,
}

/// The result of a check.
#[derive(Debug)]
pub(super) struct Finding {
    check: String,
    /// A detail, or the problem and its remedy.
    result: std::result::Result<String, (String, Cow<'static, str>)>,
}

impl Finding {
    pub(super) fn good(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), result: Ok(detail.into()) }
    }

    fn bad(check: impl Into<String>, problem: impl Into<String>, remedy: impl Into<Cow<'static, str>>) -> Self {
        Self { check: check.into(), result: Err((problem.into(), remedy.into())) }
    }

    fn print(&self, json: bool) -> Result<()> {
        let check = &self.check;
        if json {
            let (ok, detail, remedy) = match &self.result {
                Ok(detail) => (true, detail, None),
                Err((problem, remedy)) => (false, problem, Some(remedy)),
            };
            let line = serde_json::json!({ "check": check, "ok": ok, "detail": detail, "mend": remedy });
            return print::line(&line.to_string());
        }
        print::line(&match &self.result {
            Ok(detail) => format!("ok      {check:20}  {detail}"),
            Err((problem, remedy)) => format!("WRONG   {check:20}  {problem}\n        {:20}  {remedy}", ""),
        })
    }
}

/// Runs all checks and prints each result as soon as it is known. Fails if there is a problem.
pub async fn run(arguments: Arguments) -> Result<()> {
    let mut problems = 0;
    let mut print = |findings: Vec<Finding>| {
        problems += findings.iter().filter(|finding| finding.result.is_err()).count();
        findings.iter().try_for_each(|finding| finding.print(arguments.json))
    };
    let config = match configuration(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(problem) => {
            let remedy = "appferry.example.toml has every key; each can be set as APPFERRY_SECTION__KEY too";
            print(vec![Finding::bad("configuration", problem, remedy)])?;
            return Err(Error::failed("the other checks need a valid configuration"));
        }
    };
    let regions = config.regions().map_err(Error::local("invalid configuration"))?;
    let detail =
        format!("regions: {}, home {}; principals: {}", config.region.len(), regions.home(), config.principal.len());
    print(vec![Finding::good("configuration", detail)])?;
    print(database(&config).await)?;
    print(recorded_regions(&config).await)?;
    let clock = crate::system_clock();
    match app::backend(&config, &clock) {
        Ok(backend) => {
            // Ignores errors, because the configuration has already been checked.
            let proxies = config.region_proxies().unwrap_or_default();
            print(probe_regions(&backend, &proxies).await)?;
            if let Backend::Stores(stores) = &backend {
                print(leftovers::findings(&config, stores).await)?;
            }
        }
        Err(error) => {
            print(vec![Finding::bad("regions", with_causes(&error), "correct the key that the problem names")])?;
        }
    }
    print(vec![collector().await])?;
    match problems {
        0 => Ok(()),
        1 => Err(Error::failed("found 1 problem")),
        count => Err(Error::failed(format!("found {count} problems"))),
    }
}

fn configuration(file: Option<&Path>) -> std::result::Result<Config, String> {
    match file {
        Some(file) => Config::load(file).map_err(|error| with_causes(&error)),
        None => data_dir::config(Path::new(data_dir::DIRECTORY)).map_err(|error| with_causes(&error)),
    }
}

/// Checks that the database responds, has the current schema, and accepts writes, and that its clock agrees with this
/// machine's.
async fn database(config: &Config) -> Vec<Finding> {
    let check = async {
        let stop = CancellationToken::new();
        let regions = config.regions().map_err(|error| with_causes(&error))?;
        let opened = Db::open(&config.database.settings(), regions, stop.clone()).await;
        let (state, tasks) = opened.map_err(|error| with_causes(&error))?;
        let before = crate::system_clock().now();
        let (ready, time) = (state.ready().await, state.time().await);
        let after = crate::system_clock().now();
        stop.cancel();
        tasks.join().await;
        // If closing fails, the connections end with the process.
        let _ = state.close().await;
        ready.map_err(|error| with_causes(&error))?;
        let time = time.map_err(|error| with_causes(&error))?;
        // The clocks differ only if the time of the database is before or after the whole call.
        Ok::<_, String>(after.until(time).max(time.until(before)))
    };
    let remedy = "check database.url, run `appferry migrate`, and make the database writable";
    match timeout(TIMEOUT, check).await.unwrap_or_else(|_| Err("the database does not respond".to_owned())) {
        Err(problem) => vec![Finding::bad("database", problem, remedy)],
        Ok(skew) => {
            let clock = if skew <= SKEW {
                Finding::good("clock", format!("differs from the database's by {} ms", skew.as_millis()))
            } else {
                let problem = format!("differs from the database's by {} s", skew.as_secs());
                Finding::bad("clock", problem, "synchronize the clocks of both machines, for example by NTP")
            };
            vec![Finding::good("database", "has the current schema and accepts writes"), clock]
        }
    }
}

/// Finds suspended copies to regions that are not configured, and regions whose store has changed. Another check
/// reports an unreadable database.
async fn recorded_regions(config: &Config) -> Vec<Finding> {
    let read = async {
        let stop = CancellationToken::new();
        let (state, tasks) = Db::open(&config.database.settings(), config.regions().ok()?, stop.clone()).await.ok()?;
        let records = async {
            let stores = state.region_stores().await.ok()?;
            let regions: Vec<RegionId> = stores.iter().map(|store| store.region.clone()).collect();
            let suspended = state.replicas_suspended(&regions).await.ok()?;
            Some((stores, suspended))
        };
        let records = records.await;
        stop.cancel();
        tasks.join().await;
        // If closing fails, the connections end with the process.
        let _ = state.close().await;
        records
    };
    let Ok(Some((stores, suspended))) = timeout(TIMEOUT, read).await else { return Vec::new() };
    let locations = config.locations().unwrap_or_default();
    let finding = |store: &RegionStore| {
        let region = store.region.as_str();
        let Some((_, location)) = locations.iter().find(|(configured, _)| *configured == store.region) else {
            let count = suspended.get(&store.region).filter(|count| **count > 0)?;
            let problem = format!("not configured any more; {count} copies to it are suspended");
            return Some(Finding::bad(region, problem, "configure the region again, or cancel the synchronizations"));
        };
        let before = store.location.as_ref().filter(|before| *before != location)?;
        let problem = format!("its store has changed from {before} to {location}");
        Some(Finding::bad(
            region,
            problem,
            "the service checks its images there; synchronize those again that it reports as missing",
        ))
    };
    stores.iter().filter_map(finding).collect()
}

/// Checks that each region is reachable, readable and writable.
async fn probe_regions(backend: &Backend, proxies: &[RegionProxy]) -> Vec<Finding> {
    let proxy = |region: &RegionId| proxies.iter().find(|proxy| proxy.region == *region);
    match backend {
        Backend::Stores(stores) => {
            join_all(stores.iter().map(|(region, store)| probe(region, &**store, proxy(region)))).await
        }
        Backend::Ecs(ecs) => {
            let probe = |region: &RegionId| {
                let (ecs, region, proxy) = (ecs.clone(), region.clone(), proxy(region));
                async move {
                    match ecs.named(&region, PROBE_IMAGE).await {
                        Ok(_) => Finding::good(region.as_str(), "ecs: lists images"),
                        Err(error) => {
                            let remedy = "check the credentials in [alibaba], their permissions, and the endpoint";
                            let remedy = proxy_advice::of(proxy).await.map_or(remedy.into(), Cow::Owned);
                            Finding::bad(region.as_str(), format!("ecs: {}", with_causes(&error)), remedy)
                        }
                    }
                }
            };
            join_all(ecs.regions().map(probe)).await
        }
    }
}

async fn probe(region: &RegionId, store: &dyn Store, proxy: Option<&RegionProxy>) -> Finding {
    let kind = store.kind().as_str();
    match timeout(TIMEOUT, store.probe()).await.unwrap_or(Err(storage::Error::Stalled("the store"))) {
        Ok(free) => {
            let free = free.map(|free| format!(", {} free", print::bytes(i64::try_from(free).unwrap_or(i64::MAX))));
            Finding::good(region.as_str(), format!("{kind}: readable and writable{}", free.unwrap_or_default()))
        }
        Err(error) => {
            let remedy = proxy_advice::of(proxy).await.map_or(remedy(&error).into(), Cow::Owned);
            Finding::bad(region.as_str(), format!("{kind}: {}", with_causes(&error)), remedy)
        }
    }
}

/// Returns the remedy for an error of a store.
fn remedy(error: &storage::Error) -> &'static str {
    match error {
        storage::Error::Vanished(_) => "mount the file system of the directory, or correct the region's `store`",
        storage::Error::Io { source, .. } if source.raw_os_error().is_some_and(is_descriptor_limit) => {
            "raise the limit of open files (`ulimit -n`, LimitNOFILE=)"
        }
        storage::Error::Unresponsive { .. } => "check the disk or the file server of the directory",
        storage::Error::Io { .. } => "give the user of the service read and write access",
        storage::Error::Status { status, .. } if matches!(status.as_u16(), 401 | 403) => {
            "check the credentials of the region and their permissions"
        }
        storage::Error::Status { status, .. } if status.as_u16() == 404 => "create the namespace or the bucket",
        storage::Error::Credentials(_) => "check the file or the helper of the region's credentials",
        storage::Error::Transport { .. } | storage::Error::Stalled(_) => {
            "check that the store is running, and the address in the region's `store` or `endpoint`"
        }
        storage::Error::Forbidden { .. } => {
            "correct the region's `store`, or set `allow_loopback` for a service on this machine"
        }
        storage::Error::Elsewhere { advice, .. } => advice,
        _ => "see the error of the store",
    }
}

fn is_descriptor_limit(errno: i32) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|limit| limit.raw_os_error() == errno)
}

/// Checks that the OTLP collector, if any, accepts connections.
async fn collector() -> Finding {
    let check = "collector";
    let Some(endpoint) = telemetry::endpoint() else {
        return Finding::good(check, "not configured (OTEL_EXPORTER_OTLP_ENDPOINT); no traces are exported");
    };
    let remedy =
        "set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of an OTLP receiver for gRPC, for example http://127.0.0.1:4317";
    let address = endpoint.parse::<url::Url>().ok();
    let address = address.and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)));
    let Some(address) = address else { return Finding::bad(check, format!("{endpoint:?} is not a URL"), remedy) };
    match timeout(TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Finding::good(check, format!("{endpoint} accepts connections")),
        Ok(Err(error)) => Finding::bad(check, format!("{endpoint}: {error}"), remedy),
        Err(_) => Finding::bad(check, format!("{endpoint} does not respond"), remedy),
    }
}
