//! The composition root: every part is made here, given only what it needs, and brought down in order.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Audit,
    config::{self, Config, OpenStore},
    contract::{self, Contract},
    domain::{Backoff, Clock, RegionId, WorkerId},
    identity::{Directory, Fetched},
    metrics,
    region::{self, Backend, DirStore, Ecs, RegistryClient, RegistryStore, Store, Stores, guard::Guard, open_bucket},
    reload::{Access, Reload},
    server::{
        self, Deadlines, Health, Listener, ListenerSettings, Parts, Tls, TlsError,
        health::{Readiness, Told},
    },
    state::{self, State},
    sync::{Housekeeper, HousekeepingSettings, Settings as SyncSettings, Worker},
    telemetry,
};

/// Of the time that a shutdown may take, how much is left for what comes after the calls in flight.
const AFTERWARDS: u32 = 4;

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

/// A running service.
#[derive(Debug)]
pub struct Service {
    address: Option<SocketAddr>,
    openapi_address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    probes: Option<JoinHandle<()>>,
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
            let stores = stores.into_iter().map(|(region, store)| {
                let opened = open(store).map_err(|source| Error::Store { region: region.clone(), source })?;
                Ok((region, opened))
            });
            Ok(Backend::Stores(Stores::new(stores.collect::<Result<Vec<_>, Error>>()?)))
        }
        config::Backend::Ecs { places, settings } => {
            Ok(Backend::Ecs(Ecs::new(places, *settings, clock.clone()).map_err(Error::Provider)?))
        }
    }
}

fn open(store: OpenStore) -> region::Result<Arc<dyn Store>> {
    match store {
        OpenStore::Dir { path, keep_free } => Ok(Arc::new(DirStore::new(path).keeping_free(keep_free))),
        OpenStore::Registry { location, credentials, also_hosts, certificates, loopback } => {
            let client =
                RegistryClient::new(location, credentials, also_hosts, certificates.as_deref(), Guard::new(loopback))?;
            Ok(Arc::new(RegistryStore::new(client)))
        }
        OpenStore::Object { location, access, loopback } => {
            Ok(Arc::new(open_bucket(location, &access, Guard::new(loopback))?))
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
        let door = if role == Role::Worker { None } else { Some(Door::open(config).await?) };
        let probes = match &config.http {
            Some(http) => Some(bind("http.listen", http.listen, listening(config, true), None).await?),
            None => None,
        };
        let database = config.database.settings();
        let (state, state_tasks) = State::open(&database, regions, state_stop.clone()).await?;

        state.observe_connections();
        let mut tasks = Vec::new();
        let (mut address, mut openapi_address) = (None, None);
        let mut health = None;
        let (here, readiness) = watch::channel(Readiness::Ready);
        let http_address = probes.as_ref().map(|(_, bound)| *bound);
        let (mut access, mut page) = (None, None);
        if let Some(Door { listener, bound, openapi, tls, fetched, directory, audit, writing }) = door {
            let seconds = Duration::from_secs;
            tasks.push(writing);
            access = Some(Access { directory: Arc::clone(&directory), fetched, tls, audit: audit.clone() });
            let parts = Parts {
                contract,
                directory,
                failures_per_minute: config.limits.failed_credentials_per_minute,
                audit,
                state: state.clone(),
                backend: backend.clone(),
                clock,
                max_in_flight: config.server.max_in_flight,
                deadlines: Deadlines {
                    default: seconds(config.server.default_deadline_seconds),
                    longest: seconds(config.server.max_deadline_seconds),
                    stream: seconds(config.server.max_stream_seconds),
                },
                plaintext: config.server.allow_plaintext,
                stop: stop.clone(),
            };
            let doors = server::service(parts).await?;
            tasks.push(tokio::spawn(listener.serve(doors.grpc, stop.clone(), abandon.clone())));
            if let Some((listener, bound)) = openapi {
                tasks.push(tokio::spawn(listener.serve(doors.openapi, stop.clone(), abandon.clone())));
                openapi_address = Some(bound);
            }
            address = Some(bound);
            health = Some(doors.health);
            page = Some(doors.page);
        }
        // It is answered until the very end: that the service is shutting down is told there.
        let probes = probes.map(|(listener, _)| {
            tokio::spawn(listener.serve(server::http(readiness, page), state_stop.clone(), state_stop.clone()))
        });
        let reload = Arc::new(Notify::new());
        let reloading = Reload { config: config.clone(), access, asked: Arc::clone(&reload) };
        tasks.push(tokio::spawn(reloading.run(stop.clone())));
        let told = Told { grpc: health.clone(), here };
        let draining = CancellationToken::new();
        tasks.push(tokio::spawn(server::health::run(told, state.clone(), draining.clone())));
        if role != Role::Server {
            metrics::regions(worker_regions.iter());
            let settings = worker_settings(&config.worker, worker_regions);
            let housekeeping = HousekeepingSettings {
                id: settings.id.clone(),
                interval: Duration::from_millis(config.housekeeping.interval_ms),
                keep: Duration::from_secs(config.housekeeping.keep_finished_seconds),
                lease: Duration::from_millis(config.worker.lease_ms),
                longest_wait: longest_wait(&config.worker),
            };
            let housekeeper = Housekeeper::new(state.clone(), backend.clone(), housekeeping);
            tasks.push(tokio::spawn(housekeeper.run(stop.clone())));
            tasks.push(tokio::spawn(Worker::new(state.clone(), backend, topology, settings).run(stop.clone())));
        }
        let drain = if address.is_some() { config.server.drain_seconds } else { 0 };
        let shutdown = Duration::from_secs(config.server.shutdown_seconds);
        Ok(Self {
            address,
            openapi_address,
            http_address,
            probes,
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

    /// Brings it down, in order: not ready, no new calls, those in flight answered, leases handed back, the database closed. Takes as
    /// long as is configured at most, whatever clients do.
    pub async fn shutdown(self) {
        if let Some(health) = &self.health {
            server::health::set(health, tonic_health::ServingStatus::NotServing).await;
        }
        self.draining.cancel();
        tokio::time::sleep(self.drain).await;
        self.stop.cancel();
        let abandon = self.abandon.clone();
        let patience = self.shutdown.saturating_sub(self.shutdown / AFTERWARDS);
        let finish = async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a task of the service ended badly");
                }
            }
        };
        tokio::pin!(finish);
        if tokio::time::timeout(patience, finish.as_mut()).await.is_err() {
            tracing::warn!("calls are still in flight and are cut off");
            abandon.cancel();
            if tokio::time::timeout(self.shutdown / AFTERWARDS, finish).await.is_err() {
                tracing::error!("the service could not be brought down in time; leases will run out");
            }
        }
        self.state_stop.cancel();
        if tokio::time::timeout(self.shutdown / AFTERWARDS, self.state_tasks.join()).await.is_err() {
            tracing::error!("the database did not answer in time");
        }
        if let Some(probes) = self.probes
            && !matches!(tokio::time::timeout(self.shutdown / AFTERWARDS, probes).await, Ok(Ok(())))
        {
            tracing::warn!("the probes ended badly");
        }
        if let Err(error) = self.state.close().await {
            tracing::warn!(%error, "the database could not be closed");
        }
    }
}

/// What a process has that answers calls, and a worker does not.
struct Door {
    listener: Listener,
    bound: SocketAddr,
    openapi: Option<(Listener, SocketAddr)>,
    tls: Option<Arc<Tls>>,
    fetched: Fetched,
    directory: Arc<ArcSwap<Directory>>,
    audit: Audit,
    writing: JoinHandle<()>,
}

impl Door {
    async fn open(config: &Config) -> Result<Self, Error> {
        let tls = config.tls.as_ref().map(|tls| Tls::load(tls.settings()).map(Arc::new)).transpose()?;
        let mut fetched = Fetched::default();
        let directory = Arc::new(ArcSwap::from_pointee(config.directory(&mut fetched)?));
        let tls_of = tls.as_deref();
        let (listener, bound) = bind("server.listen", config.server.listen, listening(config, false), tls_of).await?;
        let openapi = match &config.openapi {
            Some(openapi) => Some(bind("openapi.listen", openapi.listen, listening(config, true), tls_of).await?),
            None => None,
        };
        // The last, which has a task to be joined.
        let failed = |source| Error::Audit { to: config.audit.to.clone(), source };
        let (audit, writing) = Audit::start(config.audit.destination(), config.audit.sample_allowed).map_err(failed)?;
        Ok(Self { listener, bound, openapi, tls, fetched, directory, audit, writing })
    }
}

/// How connections are taken; `http1` says whether the old form of HTTP is spoken too.
fn listening(config: &Config, http1: bool) -> ListenerSettings {
    ListenerSettings {
        max_connections: config.server.max_connections,
        max_streams: config.server.max_streams_per_connection,
        max_age: Duration::from_secs(config.server.max_connection_age_seconds),
        max_idle: Duration::from_secs(config.server.max_connection_idle_seconds),
        http1,
    }
}

async fn bind(
    key: &'static str,
    address: SocketAddr,
    settings: ListenerSettings,
    tls: Option<&Tls>,
) -> Result<(Listener, SocketAddr), Error> {
    let failed = |source| Error::Listen { key, address, source };
    let listener = Listener::bind(address, settings, tls).await.map_err(failed)?;
    let bound = listener.address().map_err(failed)?;
    Ok((listener, bound))
}

/// The longest wait before an attempt is repeated. Stores may ask for a longer one than is configured.
fn longest_wait(config: &config::Worker) -> Duration {
    const STORES: Duration = Duration::from_secs(3_600);
    Duration::from_millis(config.retry_longest_ms).max(STORES)
}

fn worker_settings(config: &config::Worker, regions: Vec<RegionId>) -> SyncSettings {
    let millis = Duration::from_millis;
    SyncSettings {
        id: WorkerId(format!("worker-{}", uuid::Uuid::now_v7().simple()).into()),
        regions,
        concurrency: config.concurrency,
        lease: millis(config.lease_ms),
        heartbeat: millis(config.heartbeat_ms),
        poll: millis(config.poll_ms),
        patience: millis(config.patience_ms),
        stall: millis(config.stall_ms),
        backoff: Backoff {
            first: millis(config.retry_first_ms),
            longest: millis(config.retry_longest_ms),
            attempts: config.attempts,
        },
    }
}
