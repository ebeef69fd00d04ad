//! `appferry doctor`: tries everything that the service needs, and says what to mend.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use futures_util::future::join_all;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Error, Result, data_dir, leftovers, print};
use crate::{
    config::Config,
    db::{Db, RegionStore},
    domain::{RegionId, with_causes},
    region::{self, Backend, Store},
    service, telemetry,
};

/// How long anything may take that is tried.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// By how much the clocks of this machine and of the database may differ: tokens and signatures are judged by this one's, leases by
/// that one's.
const SKEW: Duration = Duration::from_secs(5);
/// An image that no region has.
const NOBODY: &str = "appferry-probe";

#[derive(Debug, Args)]
pub struct Arguments {
    /// The configuration file; without one, the embedded default in ./appferry-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// What came of a trial.
#[derive(Debug)]
pub(super) struct Finding {
    what: String,
    /// What is so, or what is wrong and what to do about it.
    found: std::result::Result<String, (String, &'static str)>,
}

impl Finding {
    pub(super) fn good(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), found: Ok(detail.into()) }
    }

    fn bad(what: impl Into<String>, problem: impl Into<String>, mend: &'static str) -> Self {
        Self { what: what.into(), found: Err((problem.into(), mend)) }
    }

    fn tell(&self, json: bool) -> Result<()> {
        let what = &self.what;
        if json {
            let (ok, detail, mend) = match &self.found {
                Ok(detail) => (true, detail, None),
                Err((problem, mend)) => (false, problem, Some(mend)),
            };
            let line = serde_json::json!({ "check": what, "ok": ok, "detail": detail, "mend": mend });
            return print::line(&line.to_string());
        }
        print::line(&match &self.found {
            Ok(detail) => format!("ok      {what:20}  {detail}"),
            Err((problem, mend)) => format!("WRONG   {what:20}  {problem}\n        {:20}  {mend}", ""),
        })
    }
}

/// Tries everything, and tells of each as soon as it is known. Fails if anything is wrong.
pub async fn run(arguments: Arguments) -> Result<()> {
    let mut wrong = 0;
    let mut tell = |findings: Vec<Finding>| {
        wrong += findings.iter().filter(|finding| finding.found.is_err()).count();
        findings.iter().try_for_each(|finding| finding.tell(arguments.json))
    };
    let config = match configuration(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(problem) => {
            let mend = "appferry.example.toml shows every key; each can be given as APPFERRY_SECTION__KEY too";
            tell(vec![Finding::bad("configuration", problem, mend)])?;
            return Err(Error::Ended("nothing else can be tried".to_owned()));
        }
    };
    let regions = config.regions().map_err(Error::local("the configuration"))?;
    let detail =
        format!("regions: {}, home {}; principals: {}", config.region.len(), regions.home(), config.principal.len());
    tell(vec![Finding::good("configuration", detail)])?;
    tell(database(&config).await)?;
    tell(known_regions(&config).await)?;
    let clock = crate::system_clock();
    match service::backend(&config, &clock) {
        Ok(backend) => {
            tell(reach(&backend).await)?;
            if let Backend::Stores(stores) = &backend {
                tell(leftovers::findings(&config, stores).await)?;
            }
        }
        Err(error) => {
            tell(vec![Finding::bad("regions", with_causes(&error), "the key that it names can't be used as it is")])?;
        }
    }
    tell(vec![collector().await])?;
    match wrong {
        0 => Ok(()),
        1 => Err(Error::Ended("one thing is wrong".to_owned())),
        count => Err(Error::Ended(format!("{count} things are wrong"))),
    }
}

fn configuration(file: Option<&Path>) -> std::result::Result<Config, String> {
    match file {
        Some(file) => Config::load(file).map_err(|error| with_causes(&error)),
        None => data_dir::config(Path::new(data_dir::DIRECTORY)).map_err(|error| with_causes(&error)),
    }
}

/// Whether the database answers, has the schema, takes writes, and knows what time it is.
async fn database(config: &Config) -> Vec<Finding> {
    let look = async {
        let stop = CancellationToken::new();
        let regions = config.regions().map_err(|error| with_causes(&error))?;
        let opened = Db::open(&config.database.settings(), regions, stop.clone()).await;
        let (state, tasks) = opened.map_err(|error| with_causes(&error))?;
        let before = crate::system_clock().now();
        let answers = (state.ready().await, state.time().await);
        let after = crate::system_clock().now();
        stop.cancel();
        tasks.join().await;
        // It is closed with the process at the latest.
        let _ = state.close().await;
        answers.0.map_err(|error| with_causes(&error))?;
        let time = answers.1.map_err(|error| with_causes(&error))?;
        // Ahead of all that it took, or behind it.
        Ok::<_, String>(after.until(time).max(time.until(before)))
    };
    let mend = "database.url says where it is; `appferry migrate` makes its schema; it must take writes";
    match timeout(PATIENCE, look).await.unwrap_or_else(|_| Err("it does not answer".to_owned())) {
        Err(problem) => vec![Finding::bad("database", problem, mend)],
        Ok(skew) => {
            let clock = if skew <= SKEW {
                Finding::good("clock", format!("differs from the database's by {} ms", skew.as_millis()))
            } else {
                let problem = format!("differs from the database's by {} s", skew.as_secs());
                Finding::bad("clock", problem, "let NTP set the clocks of both machines")
            };
            vec![Finding::good("database", "has the schema and takes writes"), clock]
        }
    }
}

/// Whether copies wait in regions that are not configured, and whether the configured ones are where they were. Says nothing of a
/// database that can't be read: that has been said.
async fn known_regions(config: &Config) -> Vec<Finding> {
    let look = async {
        let stop = CancellationToken::new();
        let (state, tasks) = Db::open(&config.database.settings(), config.regions().ok()?, stop.clone()).await.ok()?;
        let found = async {
            let known = state.region_stores().await.ok()?;
            let regions: Vec<RegionId> = known.iter().map(|store| store.region.clone()).collect();
            let suspended = state.replicas_suspended(&regions).await.ok()?;
            Some((known, suspended))
        };
        let found = found.await;
        stop.cancel();
        tasks.join().await;
        // It is closed with the process at the latest.
        let _ = state.close().await;
        found
    };
    let Ok(Some((known, suspended))) = timeout(PATIENCE, look).await else { return Vec::new() };
    let locations = config.locations().unwrap_or_default();
    let judge = |store: &RegionStore| {
        let region = store.region.as_str();
        let Some((_, location)) = locations.iter().find(|(configured, _)| *configured == store.region) else {
            let count = suspended.get(&store.region).filter(|count| **count > 0)?;
            let problem = format!("not configured, and {count} copies to it are suspended");
            return Some(Finding::bad(region, problem, "configure the region again, or cancel what asked for it"));
        };
        let before = store.location.as_ref().filter(|before| *before != location)?;
        let problem = format!("its store was {before} and is {location}");
        Some(Finding::bad(
            region,
            problem,
            "the service checks its images there; synchronize again what it does not find",
        ))
    };
    known.iter().filter_map(judge).collect()
}

/// Whether each region can be reached, read and written.
async fn reach(backend: &Backend) -> Vec<Finding> {
    match backend {
        Backend::Stores(stores) => join_all(stores.iter().map(|(region, store)| probe(region, &**store))).await,
        Backend::Ecs(ecs) => {
            let look = |region: &RegionId| {
                let (ecs, region) = (ecs.clone(), region.clone());
                async move {
                    match ecs.named(&region, NOBODY).await {
                        Ok(_) => Finding::good(region.as_str(), "ecs: lists images"),
                        Err(error) => {
                            let mend = "the credentials of [alibaba] and what they may do, or its endpoint";
                            Finding::bad(region.as_str(), format!("ecs: {}", with_causes(&error)), mend)
                        }
                    }
                }
            };
            join_all(ecs.regions().map(look)).await
        }
    }
}

async fn probe(region: &RegionId, store: &dyn Store) -> Finding {
    let kind = store.kind().as_str();
    match timeout(PATIENCE, store.probe()).await.unwrap_or(Err(region::Error::Stalled("the store"))) {
        Ok(free) => {
            let free = free.map(|free| format!(", {} free", print::bytes(i64::try_from(free).unwrap_or(i64::MAX))));
            Finding::good(region.as_str(), format!("{kind}: can be read and written{}", free.unwrap_or_default()))
        }
        Err(error) => Finding::bad(region.as_str(), format!("{kind}: {}", with_causes(&error)), mend(&error)),
    }
}

/// What to do about it.
fn mend(error: &region::Error) -> &'static str {
    match error {
        region::Error::Vanished(_) => {
            "the disk that it is on has to be mounted; or the region's `store` is another directory"
        }
        region::Error::Io { source, .. } if source.raw_os_error().is_some_and(is_descriptor_limit) => {
            "the limit of open files (`ulimit -n`, LimitNOFILE=) is too low for what the process has open"
        }
        region::Error::Unresponsive { .. } => "the disk or the file server that the directory is on",
        region::Error::Io { .. } => "the user that the service runs as must be able to read and write there",
        region::Error::Status { status, .. } if matches!(status.as_u16(), 401 | 403) => {
            "the credentials of the region, and what they may do"
        }
        region::Error::Status { status, .. } if status.as_u16() == 404 => {
            "the namespace or the bucket: it has to be there"
        }
        region::Error::Credentials(_) => "the file or the helper that the region's credentials come from",
        region::Error::Transport { .. } | region::Error::Stalled(_) => {
            "whether the store, and the proxy where there is one, is running, and whether its address in the region's `store` or `endpoint` is right"
        }
        region::Error::Forbidden { .. } => "the region's `store`; `allow_loopback` lets a name lead to this machine",
        region::Error::Elsewhere { advice, .. } => advice,
        _ => "what the store says",
    }
}

fn is_descriptor_limit(errno: i32) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|limit| limit.raw_os_error() == errno)
}

/// Whether somebody listens where telemetry is to be sent.
async fn collector() -> Finding {
    let what = "collector";
    let Some(endpoint) = telemetry::endpoint() else {
        return Finding::good(what, "none is configured (OTEL_EXPORTER_OTLP_ENDPOINT): no trace is sent");
    };
    let mend =
        "OTEL_EXPORTER_OTLP_ENDPOINT must be the URL of an OTLP receiver for gRPC, for example http://127.0.0.1:4317";
    let address = endpoint.parse::<url::Url>().ok();
    let address = address.and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)));
    let Some(address) = address else { return Finding::bad(what, format!("{endpoint:?} is no URL"), mend) };
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Finding::good(what, format!("{endpoint} takes connections")),
        Ok(Err(error)) => Finding::bad(what, format!("{endpoint}: {error}"), mend),
        Err(_) => Finding::bad(what, format!("{endpoint} does not answer"), mend),
    }
}
