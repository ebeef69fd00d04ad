//! `appferry serve` and `appferry worker`: run a service.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Error, Result,
    data_dir::{self, DataDirectory},
    signals::Signals,
};
use crate::{
    app::{Role, Service, Shutdown},
    config::Config,
};

/// Runs a service until SIGTERM or SIGINT, then shuts it down cleanly. SIGHUP reloads the configuration of
/// access and logs.
pub async fn run(file: Option<PathBuf>, role: Role) -> Result<()> {
    let signals = Signals::receive().map_err(Error::local("failed to install the signal handlers"))?;
    let started = tokio::select! {
        started = start(file, role, &signals) => started?,
        () = signals.stop.cancelled() => {
            tracing::info!("shutting down during startup");
            return Ok(());
        }
    };
    loop {
        tokio::select! {
            () = signals.stop.cancelled() => break,
            () = signals.reload.notified() => started.service.reload(),
        }
    }
    tracing::info!("shutting down");
    match started.service.shutdown().await {
        Shutdown::Complete => {
            tracing::info!("shutdown complete");
            Ok(())
        }
        Shutdown::Incomplete => Err(Error::ShutdownIncomplete),
    }
}

/// A running service with its locked data directory.
struct Started {
    service: Service,
    _directory: Option<DataDirectory>,
}

async fn start(file: Option<PathBuf>, role: Role, signals: &Signals) -> Result<Started> {
    let (config, directory) = match file {
        Some(file) => (Config::load(&file).map_err(Error::local("invalid configuration"))?, None),
        None => {
            let directory = DataDirectory::open(Path::new(data_dir::DIRECTORY))?;
            let config = directory.config()?;
            directory.migrate(&config).await?;
            (config, Some(directory))
        }
    };
    signals.limit_to(Duration::from_secs(config.server.shutdown_seconds));
    config.log.apply().map_err(Error::local("invalid configuration"))?;
    let service = Service::start(&config, role).await.map_err(Error::local("failed to start the service"))?;
    signals.limit_to(service.shutdown_limit());
    if let Some(address) = service.http_address() {
        tracing::info!(%address, "listening for probes and metrics");
    }
    if let Some(address) = service.address() {
        tracing::info!(%address, home = config.home.region, regions = config.region.len(), "serving");
        if let Some(address) = service.openapi_address() {
            tracing::info!(%address, "serving the HTTP form of the API");
        }
        if let Some(directory) = &directory {
            let token = directory.token_file();
            tracing::info!(
                "next, in this directory: appferry image add --name NAME --file FILE, then appferry sync APP_ID --wait; \
                 the administrator's token is in {}",
                token.display()
            );
        }
    } else {
        tracing::info!("worker started");
    }
    Ok(Started { service, _directory: directory })
}
