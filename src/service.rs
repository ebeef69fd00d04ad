//! The composition root: every part is made here, given only what it needs, and brought down in order.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Audit,
    config::{self, Config, OpenStore},
    contract::{self, Contract},
    descriptors,
    domain::{Clock, RegionId, WorkerId},
    identity::{CurrentAuthenticator, JwksFetcher},
    metrics,
    region::{
        self, Backend, DirStore, Ecs, Egress, RegistryClient, RegistryStore, Store, Stores, guard::Guard, open_bucket,
    },
    reload::{Access, Reload},
    server::{
        self, Deadlines, Dependencies, Health, Listener, ListenerSettings, Proxies, Tls, TlsError,
        health::{PublishedHealth, Readiness},
    },
    state::{self, State},
    telemetry,
    worker::{Maintenance, MaintenanceSettings, Settings as WorkerSettings, Worker},
};

/// When the parts of a shutdown are given up, in hundredths of the time that it may take: calls and copies in flight, those again
/// after their connections were cut, the tasks of the state, the probes, the audit log, the connections to the database. What is left is
/// for the last spans and log lines.
const PARTS: [u32; 6] = [60, 70, 75, 78, 82, 86];

/// Why the service can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The contract can't be read.
    #[error(transparent)]
    Contract(#[from] contract::Error),
    /// The state can't be opened.
    #[error(transparent)]
    State(#[from] state::Error),
    /// A region's store can't be used.
    #[error("the store of {region}: {source}")]
    Store {
        /// The region.
        region: RegionId,
        /// What is wrong with it.
        source: region::Error,
    },
    /// The provider can't be spoken to.
    #[error("alibaba: {0}")]
    Provider(#[source] region::Error),
    /// Reflection can't be set up.
    #[error("reflection can't be set up")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The certificates can't be used.
    #[error("tls")]
    Tls(#[from] TlsError),
    /// The process may open too few files and connections.
    #[error(transparent)]
    Descriptors(#[from] descriptors::TooFew),
    /// The audit log can't be written.
    #[error("audit.to: {to}: {source}")]
    Audit {
        /// Where it should go.
        to: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// What is measured can't be exported.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// The address can't be listened on.
    #[error("{key}: {address}: {source}")]
    Listen {
        /// The key of the configuration that it stands at.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It answers calls and carries images.
    ServerAndWorker,
    /// It carries images.
    Worker,
    /// It answers calls.
    Server,
}

/// How a shutdown came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Every part has ended.
    Complete,
    /// Some part did not end in time, and was left behind.
    Incomplete,
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    address: Option<SocketAddr>,
    openapi_address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    _ownership: state::Ownership,
    probes: Option<JoinHandle<()>>,
    /// Writes the audit log until everything is gone that takes decisions, the status page among it.
    audit: Option<JoinHandle<()>>,
    health: Option<Health>,
    state: State,
    state_tasks: state::Tasks,
    state_stop: CancellationToken,
    stop: CancellationToken,
    abandon: CancellationToken,
    /// Canceled when it is not ready any more, while it still takes calls.
    draining: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    drain: Duration,
    shutdown: Duration,
    reload: Arc<Notify>,
}

/// What keeps the images of the configured regions.
pub fn backend(config: &Config, clock: &Clock) -> Result<Backend, Error> {
    match config.backend()? {
        config::Backend::Stores(stores) => {
            // Before an attempt is given up: the error of the store says what hangs.
            let stall = Duration::from_millis(config.worker.stall_ms).mul_f64(0.75);
            let stores = stores.into_iter().map(|(region, store)| {
                let opened = open(store, stall).map_err(|source| Error::Store { region: region.clone(), source })?;
                Ok((region, opened))
            });
            Ok(Backend::Stores(Stores::new(stores.collect::<Result<Vec<_>, Error>>()?)))
        }
        config::Backend::Ecs { places, settings } => {
            Ok(Backend::Ecs(Ecs::new(places, *settings, clock.clone()).map_err(Error::Provider)?))
        }
    }
}

fn open(store: OpenStore, stall: Duration) -> region::Result<Arc<dyn Store>> {
    match store {
        OpenStore::Dir { path, keep_free } => {
            Ok(Arc::new(DirStore::new(path).keeping_free(keep_free).stalling_after(stall)))
        }
        OpenStore::Registry {
            location,
            credentials,
            also_hosts,
            certificates,
            verify_existing,
            loopback,
            shared,
            proxy,
        } => {
            let client = RegistryClient::new(
                location,
                credentials,
                also_hosts,
                certificates.as_deref(),
                Egress::new(Guard::new(loopback).with_shared(shared), proxy),
            )?;
            Ok(Arc::new(RegistryStore::new(client).verifying_existing(verify_existing)))
        }
        OpenStore::Object { location, access, verify_existing, loopback, shared, proxy } => {
            let egress = Egress::new(Guard::new(loopback).with_shared(shared), proxy);
            let bucket = open_bucket(location, &access, egress)?;
            Ok(Arc::new(bucket.verifying_existing(verify_existing)))
        }
    }
}

impl Service {
    /// Starts everything that the role asks for. The database's schema must be the current one.
    pub async fn start(config: &Config, role: Role) -> Result<Self, Error> {
        let contract = Contract::load()?;
        let regions = config.regions()?;
        let topology = config.topology()?;
        let worker_regions = config.worker.served(&regions)?;
        // Before anything that measures.
        telemetry::metrics::start(config.http.is_some())?;
        let clock = Clock::system();
        let backend = backend(config, &clock)?;
        let (stop, abandon, state_stop) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());

        // Before the state, which has tasks to be joined.
        let connections = descriptors::divide(config, listeners(config, role))?;
        let door = if role == Role::Worker { None } else { Some(Door::open(config, connections).await?) };
        let probes = match &config.http {
            Some(http) => Some(
                bind("http.listen", http.listen, listening(config, connections, true), proxies(config), None).await?,
            ),
            None => None,
        };
        let database = config.database.settings();
        let ownership = state::Ownership::take(&database)?;
        let (state, state_tasks) = State::open(&database, regions, state_stop.clone()).await?;

        state.observe_connections();
        let mut tasks = Vec::new();
        let (mut address, mut openapi_address) = (None, None);
        let mut health = None;
        let (admin, readiness) = watch::channel(Readiness::Ready);
        let http_address = probes.as_ref().map(|(_, bound)| *bound);
        let (mut access, mut page, mut audit_task) = (None, None, None);
        if let Some(Door { listener, bound, openapi, tls, fetched, directory, audit, writing }) = door {
            audit_task = Some(writing);
            access = Some(Access { directory: Arc::clone(&directory), fetched, tls, audit: audit.clone() });
            let (refusals, counting) = refusals(config, &audit, &clock, &stop);
            tasks.push(counting);
            let dependencies = Dependencies {
                contract,
                authenticator: directory,
                auth_throttle: refusals,
                audit,
                state: state.clone(),
                backend: backend.clone(),
                clock,
                max_in_flight: config.server.max_in_flight,
                deadlines: deadlines(config),
                plaintext: config.server.allow_plaintext,
                stop: stop.clone(),
            };
            let endpoints = server::endpoints(dependencies).await?;
            tasks.push(tokio::spawn(listener.serve(endpoints.grpc, stop.clone(), abandon.clone())));
            if let Some((listener, bound)) = openapi {
                tasks.push(tokio::spawn(listener.serve(endpoints.openapi, stop.clone(), abandon.clone())));
                openapi_address = Some(bound);
            }
            address = Some(bound);
            health = Some(endpoints.health);
            page = Some(endpoints.page);
        }
        // It is answered until the very end: that the service is shutting down is told there.
        let probes = probes.map(|(listener, _)| {
            tokio::spawn(listener.serve(server::admin(readiness, page), state_stop.clone(), state_stop.clone()))
        });
        let reload = Arc::new(Notify::new());
        let access_audit = access.as_ref().map(|access| access.audit.clone());
        let reloading = Reload { config: config.clone(), access, asked: Arc::clone(&reload) };
        tasks.push(tokio::spawn(reloading.run(stop.clone())));
        let published = PublishedHealth { grpc: health.clone(), admin };
        let draining = CancellationToken::new();
        tasks.push(tokio::spawn(server::health::run(published, state.clone(), access_audit, draining.clone())));
        if role != Role::Server {
            metrics::regions(worker_regions.iter());
            let settings = worker_settings(&config.worker, worker_regions);
            let maintenance = maintenance_settings(config, settings.id.clone())?;
            let maintenance = Maintenance::new(state.clone(), backend.clone(), maintenance);
            tasks.push(tokio::spawn(maintenance.run(stop.clone())));
            tasks.push(tokio::spawn(Worker::new(state.clone(), backend, topology, settings).run(stop.clone())));
        }
        let drain = if address.is_some() { config.server.drain_seconds } else { 0 };
        let shutdown = Duration::from_secs(config.server.shutdown_seconds);
        Ok(Self {
            address,
            openapi_address,
            http_address,
            _ownership: ownership,
            probes,
            audit: audit_task,
            health,
            state,
            state_tasks,
            state_stop,
            stop,
            abandon,
            draining,
            tasks,
            drain: Duration::from_secs(drain),
            shutdown,
            reload,
        })
    }

    /// Has who may call and what is logged read anew, and the audit log opened anew.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Where it listens; nothing for workers alone.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Where it listens for the original's HTTP form; nothing if that is not configured.
    #[must_use]
    pub fn openapi_address(&self) -> Option<SocketAddr> {
        self.openapi_address
    }

    /// Where it listens for probes and for Prometheus; nothing if that is not configured.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// How long [`Self::shutdown`] takes at most.
    #[must_use]
    pub fn shutdown_limit(&self) -> Duration {
        self.drain + self.shutdown
    }

    /// Brings it down, in order: not ready, no new calls, those in flight answered, leases handed back, the database closed. Takes as
    /// long as is configured at most, whatever clients, stores and the database do.
    pub async fn shutdown(self) -> Shutdown {
        if let Some(health) = &self.health {
            server::health::set(health, tonic_health::ServingStatus::NotServing).await;
        }
        self.draining.cancel();
        tokio::time::sleep(self.drain).await;
        let begun = Instant::now();
        let [calls, cut, tasks, probes, audit, close] = PARTS.map(|part| begun + self.shutdown * part / 100);
        self.stop.cancel();
        if let Some(health) = self.health {
            server::health::end_watches(health).await;
        }
        let mut shutdown = Shutdown::Complete;
        let finish = async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a task of the service ended badly");
                }
            }
        };
        tokio::pin!(finish);
        if timeout_at(calls, finish.as_mut()).await.is_err() {
            tracing::warn!("calls are still in flight and are cut off");
            self.abandon.cancel();
            if timeout_at(cut, finish).await.is_err() {
                tracing::error!("the service could not be brought down in time; leases will expire");
                shutdown = Shutdown::Incomplete;
            }
        }
        self.state_stop.cancel();
        if timeout_at(tasks, self.state_tasks.join()).await.is_err() {
            tracing::error!("the database did not answer in time");
            shutdown = Shutdown::Incomplete;
        }
        if let Some(task) = self.probes
            && !matches!(timeout_at(probes, task).await, Ok(Ok(())))
        {
            tracing::warn!("the probes ended badly");
        }
        if let Some(task) = self.audit
            && timeout_at(audit, task).await.is_err()
        {
            tracing::error!("the audit log could not be written to its end in time");
            shutdown = Shutdown::Incomplete;
        }
        match timeout_at(close, self.state.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the database could not be closed"),
            Err(_) => tracing::warn!("the connections to the database could not be closed in time"),
        }
        shutdown
    }
}

/// What a process has that answers calls, and a worker does not.
struct Door {
    listener: Listener,
    bound: SocketAddr,
    openapi: Option<(Listener, SocketAddr)>,
    tls: Option<Arc<Tls>>,
    fetched: JwksFetcher,
    directory: Arc<CurrentAuthenticator>,
    audit: Audit,
    writing: JoinHandle<()>,
}

impl Door {
    async fn open(config: &Config, connections: usize) -> Result<Self, Error> {
        let tls = config.tls.as_ref().map(|tls| Tls::load(tls.settings()).map(Arc::new)).transpose()?;
        let mut fetched = JwksFetcher::default();
        let directory = Arc::new(CurrentAuthenticator::new(config.directory(&mut fetched)?));
        let tls_of = tls.as_deref();
        let settings = listening(config, connections, false);
        let (listener, bound) = bind("server.listen", config.server.listen, settings, proxies(config), tls_of).await?;
        let openapi = match &config.openapi {
            Some(openapi) => {
                let settings = listening(config, connections, true);
                Some(bind("openapi.listen", openapi.listen, settings, proxies(config), tls_of).await?)
            }
            None => None,
        };
        // The last, which has a task to be joined.
        let failed = |source| Error::Audit { to: config.audit.to.clone(), source };
        let (audit, writing) = Audit::start(config.audit.destination(), config.audit.sample_allowed).map_err(failed)?;
        Ok(Self { listener, bound, openapi, tls, fetched, directory, audit, writing })
    }
}

/// How many listeners a process has.
fn listeners(config: &Config, role: Role) -> usize {
    let calls = if role == Role::Worker { 0 } else { 1 + usize::from(config.openapi.is_some()) };
    calls + usize::from(config.http.is_some())
}

/// How connections are taken, so many of them; `http1` says whether the old form of HTTP is spoken too.
fn listening(config: &Config, connections: usize, http1: bool) -> ListenerSettings {
    ListenerSettings {
        max_connections: connections,
        max_per_source: config.server.max_connections_per_source,
        max_streams: config.server.max_streams_per_connection,
        max_age: Duration::from_secs(config.server.max_connection_age_seconds),
        max_idle: Duration::from_secs(config.server.max_connection_idle_seconds),
        max_call: Duration::from_secs(config.server.max_stream_seconds.max(config.server.max_deadline_seconds)),
        http1,
    }
}

/// The deadlines of calls.
fn deadlines(config: &Config) -> Deadlines {
    let [default, longest, stream] =
        [config.server.default_deadline_seconds, config.server.max_deadline_seconds, config.server.max_stream_seconds]
            .map(Duration::from_secs);
    Deadlines { default, longest, stream }
}

/// What counts calls without a valid credential, and the task that tells of them.
fn refusals(
    config: &Config,
    audit: &Audit,
    clock: &Clock,
    stop: &CancellationToken,
) -> (Arc<server::AuthThrottle>, JoinHandle<()>) {
    let per_minute = config.limits.failed_credentials_per_minute;
    let refusals = Arc::new(server::AuthThrottle::new(per_minute, audit.clone(), clock.clone()));
    let (counted, stop) = (Arc::clone(&refusals), stop.clone());
    (refusals, tokio::spawn(async move { counted.run(stop).await }))
}

/// The proxies that are believed.
fn proxies(config: &Config) -> Arc<Proxies> {
    Arc::new(config.server.proxies())
}

async fn bind(
    key: &'static str,
    address: SocketAddr,
    settings: ListenerSettings,
    proxies: Arc<Proxies>,
    tls: Option<&Tls>,
) -> Result<(Listener, SocketAddr), Error> {
    let failed = |source| Error::Listen { key, address, source };
    let listener = Listener::bind(address, settings, proxies, tls).await.map_err(failed)?;
    let bound = listener.address().map_err(failed)?;
    Ok((listener, bound))
}

/// The longest wait before an attempt is repeated. Stores may ask for a longer one than is configured.
fn longest_wait(config: &config::Worker) -> Duration {
    const STORES: Duration = Duration::from_secs(3_600);
    Duration::from_millis(config.retry_longest_ms).max(STORES)
}

fn maintenance_settings(config: &Config, id: WorkerId) -> Result<MaintenanceSettings, Error> {
    Ok(MaintenanceSettings {
        id,
        interval: Duration::from_millis(config.housekeeping.interval_ms),
        keep: Duration::from_secs(config.housekeeping.keep_finished_seconds),
        locations: config.locations()?,
        lease: Duration::from_millis(config.worker.lease_ms),
        longest_wait: longest_wait(&config.worker),
    })
}

fn worker_settings(config: &config::Worker, regions: Vec<RegionId>) -> WorkerSettings {
    let millis = Duration::from_millis;
    WorkerSettings {
        id: WorkerId(format!("worker-{}", uuid::Uuid::now_v7().simple()).into()),
        regions,
        concurrency: config.concurrency,
        lease: millis(config.lease_ms),
        heartbeat: millis(config.heartbeat_ms),
        poll: millis(config.poll_ms),
        patience: millis(config.patience_ms),
        stall: millis(config.stall_ms),
        backoff: config.backoff(),
    }
}
