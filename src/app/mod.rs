//! The composition root: builds every part of the service, starts its tasks, and shuts them down in a fixed order.

mod frontend;
mod settings;
mod shutdown;
mod stores;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use shutdown::Shutdown;
pub use stores::backend;

use self::frontend::{Frontend, Sockets, bind_admin};
use crate::{
    config::{self, Config},
    contract::{self, Contract},
    db::{self, Db},
    descriptors,
    domain::{RegionId, relay::Topology},
    metrics,
    reload::{Access, Reload},
    server::{
        self, Health, TlsError,
        health::{PublishedHealth, Readiness},
    },
    storage::{self, Backend},
    telemetry,
    worker::{Maintenance, Worker},
};

/// Why the service can't start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Error {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The contract's descriptors are invalid.
    #[error(transparent)]
    Contract(#[from] contract::Error),
    /// The database can't be opened.
    #[error(transparent)]
    Db(#[from] db::Error),
    /// A region's store can't be opened.
    #[error("failed to open the store of region {region}: {source}")]
    Store { region: RegionId, source: Box<storage::Error> },
    /// The client of Alibaba Cloud can't be built.
    #[error("alibaba: {0}")]
    Provider(#[source] storage::Error),
    /// The reflection service can't be built.
    #[error("failed to build the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The certificates can't be loaded.
    #[error("tls: failed to load the certificates")]
    Tls(#[from] TlsError),
    /// The limit of file descriptors is too low.
    #[error(transparent)]
    Descriptors(#[from] descriptors::TooFew),
    /// The audit log can't be opened.
    #[error("audit.to: failed to open {destination}: {source}")]
    Audit {
        /// The configured destination.
        destination: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The metrics exporter can't be built.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// A listener can't be bound.
    #[error("{key}: failed to listen on {address}: {source}")]
    Listen {
        /// The configuration key that sets the address.
        key: &'static str,
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// Which parts a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The API and a worker.
    ServerAndWorker,
    /// A worker alone.
    Worker,
    /// The API alone.
    Server,
}

/// The tokens that stop the parts of a service, in the order in which a shutdown cancels them.
#[derive(Debug, Clone, Default)]
struct StopTokens {
    /// The service reports that it is not ready, but still accepts calls.
    drain: CancellationToken,
    /// The service accepts no more calls, streams end, and workers release their claims.
    stop: CancellationToken,
    /// Open connections are cut.
    abandon: CancellationToken,
    /// The tasks of the database and the admin listener end.
    state: CancellationToken,
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    address: Option<SocketAddr>,
    openapi_address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    _ownership: db::Ownership,
    /// The task of the admin listener, which serves probes, metrics and the status page.
    admin: Option<JoinHandle<()>>,
    /// The task that writes the audit log. It ends after all tasks that make decisions, including the status page.
    audit: Option<JoinHandle<()>>,
    health: Option<Health>,
    state: Db,
    state_tasks: db::Tasks,
    tokens: StopTokens,
    tasks: Vec<JoinHandle<()>>,
    drain_time: Duration,
    shutdown_time: Duration,
    reload: Arc<Notify>,
}

impl Service {
    /// Starts the parts of `role`. The schema of the database must be current.
    pub async fn start(config: &Config, role: Role) -> Result<Self, Error> {
        let contract = Contract::load()?;
        let regions = config.regions()?;
        let topology = config.topology()?;
        let worker_regions = config.worker.served(&regions)?;
        // Must precede the first measurement.
        telemetry::metrics::start(config.http.is_some())?;
        let clock = crate::system_clock();
        let backend = backend(config, &clock)?;
        let tokens = StopTokens::default();

        // Sockets are bound before the database is opened: its tasks would have to be joined if binding failed.
        let connections = descriptors::divide(config, frontend::listener_count(config, role))?;
        let sockets = if role == Role::Worker { None } else { Some(Sockets::bind(config, connections).await?) };
        let admin = bind_admin(config, connections).await?;
        let database = config.database.settings();
        let ownership = db::Ownership::take(&database)?;
        let (state, state_tasks) = Db::open(&database, regions, tokens.state.clone()).await?;
        state.observe_connections();

        let frontend = match sockets {
            Some(sockets) => Some(sockets.serve(config, contract, &state, &backend, clock, &tokens).await?),
            None => None,
        };
        let Frontend { address, openapi_address, health, page, access, audit, mut tasks } =
            frontend.unwrap_or_default();
        let http_address = admin.as_ref().map(|(_, address)| *address);
        let (readiness_sender, readiness) = watch::channel(Readiness::Ready);
        // The admin listener runs until the end of the shutdown, to report that the service is shutting down.
        let admin = admin.map(|(listener, _)| {
            tokio::spawn(listener.serve(server::admin(readiness, page), tokens.state.clone(), tokens.state.clone()))
        });
        let audit_handle = access.as_ref().map(|access| access.audit.clone());
        let published = PublishedHealth { grpc: health.clone(), admin: readiness_sender };
        let drain = tokens.drain.clone();
        tasks.push(tokio::spawn(server::health::run(published, state.clone(), audit_handle, drain)));
        let reload = start_reload(config, access, &tokens, &mut tasks);
        if role != Role::Server {
            tasks.extend(start_worker(config, topology, worker_regions, &state, backend, &tokens.stop)?);
        }
        let drain_seconds = if address.is_some() { config.server.drain_seconds } else { 0 };
        Ok(Self {
            address,
            openapi_address,
            http_address,
            _ownership: ownership,
            admin,
            audit,
            health,
            state,
            state_tasks,
            tokens,
            tasks,
            drain_time: Duration::from_secs(drain_seconds),
            shutdown_time: Duration::from_secs(config.server.shutdown_seconds),
            reload,
        })
    }

    /// Reloads the configuration of access and logs, and reopens the audit log.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Returns the address of the gRPC listener; `None` for a worker alone.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Returns the address of the listener for the original's HTTP form; `None` without `[openapi]`.
    #[must_use]
    pub fn openapi_address(&self) -> Option<SocketAddr> {
        self.openapi_address
    }

    /// Returns the address of the admin listener for probes and Prometheus; `None` without `[http]`.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Returns the longest time that [`Self::shutdown`] takes.
    #[must_use]
    pub fn shutdown_limit(&self) -> Duration {
        self.drain_time + self.shutdown_time
    }
}

/// Starts the task that reloads access and logs. Returns its trigger.
fn start_reload(
    config: &Config,
    access: Option<Access>,
    tokens: &StopTokens,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Arc<Notify> {
    let trigger = Arc::new(Notify::new());
    let reload = Reload { config: config.clone(), access, trigger: Arc::clone(&trigger) };
    tasks.push(tokio::spawn(reload.run(tokens.stop.clone())));
    trigger
}

/// Starts the worker and the maintenance. Returns their tasks.
fn start_worker(
    config: &Config,
    topology: Topology,
    regions: Vec<RegionId>,
    state: &Db,
    backend: Backend,
    stop: &CancellationToken,
) -> Result<[JoinHandle<()>; 2], Error> {
    metrics::register_regions(regions.iter());
    let settings = settings::worker(&config.worker, regions);
    let maintenance = settings::maintenance(config, settings.id.clone())?;
    let maintenance = Maintenance::new(state.clone(), backend.clone(), maintenance);
    let worker = Worker::new(state.clone(), backend, topology, settings);
    Ok([tokio::spawn(maintenance.run(stop.clone())), tokio::spawn(worker.run(stop.clone()))])
}
