//! The parts of a process that accepts calls: listeners, authentication, audit log.

use std::{net::SocketAddr, sync::Arc};

use tokio::task::JoinHandle;

use super::{Error, Role, StopTokens, settings};
use crate::{
    audit::Audit,
    config::Config,
    contract::Contract,
    db::Db,
    domain::Clock,
    identity::{CurrentAuthenticator, JwksFetcher},
    reload::Access,
    server::{self, Dependencies, Health, Listener, ListenerSettings, Proxies, StatusPage, Tls},
    storage::Backend,
};

/// A bound listener and its address.
pub type Bound = (Listener, SocketAddr);

/// The bound listeners and all other parts of the frontend that can fail before the database is opened.
pub struct Sockets {
    grpc: Bound,
    openapi: Option<Bound>,
    tls: Option<Arc<Tls>>,
    fetched: JwksFetcher,
    directory: Arc<CurrentAuthenticator>,
    audit: Audit,
    audit_task: JoinHandle<()>,
}

/// The running frontend. All fields are empty in a process that runs only a worker.
#[derive(Default)]
pub struct Frontend {
    /// The address of the gRPC listener.
    pub address: Option<SocketAddr>,
    /// The address of the listener for the original's HTTP form.
    pub openapi_address: Option<SocketAddr>,
    /// Publishes the gRPC health status.
    pub health: Option<Health>,
    /// The status page, which the admin listener serves.
    pub page: Option<StatusPage>,
    /// The parts that a reload replaces.
    pub access: Option<Access>,
    /// The task that writes the audit log.
    pub audit: Option<JoinHandle<()>>,
    /// The listeners and the task that summarizes rejected credentials.
    pub tasks: Vec<JoinHandle<()>>,
}

impl Sockets {
    /// Loads the certificates and principals, binds the listeners, and opens the audit log.
    pub async fn bind(config: &Config, connections: usize) -> Result<Self, Error> {
        let tls = config.tls.as_ref().map(|tls| Tls::load(tls.settings()).map(Arc::new)).transpose()?;
        let mut fetched = JwksFetcher::default();
        let directory = Arc::new(CurrentAuthenticator::new(config.directory(&mut fetched)?));
        let certificates = tls.as_deref();
        let settings = settings::listener(config, connections, false);
        let proxies = settings::proxies(config);
        let grpc = bind("server.listen", config.server.listen, settings, Arc::clone(&proxies), certificates).await?;
        let openapi = match &config.openapi {
            Some(openapi) => {
                let settings = settings::listener(config, connections, true);
                Some(bind("openapi.listen", openapi.listen, settings, proxies, certificates).await?)
            }
            None => None,
        };
        // Started last, because it starts a task that has to be joined.
        let failed = |source| Error::Audit { destination: config.audit.to.clone(), source };
        let (audit, audit_task) =
            Audit::start(config.audit.destination(), config.audit.sample_allowed).map_err(failed)?;
        Ok(Self { grpc, openapi, tls, fetched, directory, audit, audit_task })
    }

    /// Starts to accept calls.
    pub async fn serve(
        self,
        config: &Config,
        contract: &'static Contract,
        state: &Db,
        backend: &Backend,
        clock: Clock,
        tokens: &StopTokens,
    ) -> Result<Frontend, Error> {
        let Self { grpc: (grpc, address), openapi, tls, fetched, directory, audit, audit_task } = self;
        let StopTokens { stop, abandon, .. } = tokens;
        let per_minute = config.limits.failed_credentials_per_minute;
        let auth_throttle = Arc::new(server::AuthThrottle::new(per_minute, audit.clone(), clock.clone()));
        let summarize = {
            let (auth_throttle, stop) = (Arc::clone(&auth_throttle), stop.clone());
            async move { auth_throttle.run(stop).await }
        };
        let mut tasks = vec![tokio::spawn(summarize)];
        let dependencies = Dependencies {
            contract,
            authenticator: Arc::clone(&directory),
            auth_throttle,
            audit: audit.clone(),
            state: state.clone(),
            backend: backend.clone(),
            clock,
            max_in_flight: config.server.max_in_flight,
            deadlines: settings::deadlines(config),
            plaintext: config.server.allow_plaintext,
            stop: stop.clone(),
        };
        let endpoints = server::endpoints(dependencies).await?;
        tasks.push(tokio::spawn(grpc.serve(endpoints.grpc, stop.clone(), abandon.clone())));
        let openapi_address = openapi.map(|(listener, address)| {
            tasks.push(tokio::spawn(listener.serve(endpoints.openapi, stop.clone(), abandon.clone())));
            address
        });
        Ok(Frontend {
            address: Some(address),
            openapi_address,
            health: Some(endpoints.health),
            page: Some(endpoints.page),
            access: Some(Access { directory, fetched, tls, audit }),
            audit: Some(audit_task),
            tasks,
        })
    }
}

/// Binds the admin listener, if `[http]` is configured.
pub async fn bind_admin(config: &Config, connections: usize) -> Result<Option<Bound>, Error> {
    let Some(http) = &config.http else { return Ok(None) };
    let settings = settings::listener(config, connections, true);
    bind("http.listen", http.listen, settings, settings::proxies(config), None).await.map(Some)
}

/// The number of listeners of a process.
pub fn listener_count(config: &Config, role: Role) -> usize {
    let calls = if role == Role::Worker { 0 } else { 1 + usize::from(config.openapi.is_some()) };
    calls + usize::from(config.http.is_some())
}

async fn bind(
    key: &'static str,
    address: SocketAddr,
    settings: ListenerSettings,
    proxies: Arc<Proxies>,
    tls: Option<&Tls>,
) -> Result<Bound, Error> {
    let failed = |source| Error::Listen { key, address, source };
    let listener = Listener::bind(address, settings, proxies, tls).await.map_err(failed)?;
    let address = listener.address().map_err(failed)?;
    Ok((listener, address))
}
