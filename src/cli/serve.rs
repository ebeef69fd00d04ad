//! `appferry serve` and `appferry worker`.

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
    config::Config,
    service::{Role, Service, Shutdown},
};

/// Runs until SIGTERM or SIGINT, and brings everything down in order then. At SIGHUP, who may call and what is logged are read again.
pub async fn run(file: Option<PathBuf>, role: Role) -> Result<()> {
    let signals = Signals::receive().map_err(Error::local("signals"))?;
    let started = tokio::select! {
        started = start(file, role, &signals) => started?,
        () = signals.stop.cancelled() => {
            tracing::info!("shutting down before the start was complete");
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
            tracing::info!("done");
            Ok(())
        }
        Shutdown::Incomplete => Err(Error::CutShort),
    }
}

/// A running service, and the data directory that no other process may use meanwhile.
struct Started {
    service: Service,
    _directory: Option<DataDirectory>,
}

async fn start(file: Option<PathBuf>, role: Role, signals: &Signals) -> Result<Started> {
    let (config, directory) = match file {
        Some(file) => (Config::load(&file).map_err(Error::local("the configuration"))?, None),
        None => {
            let directory = DataDirectory::open(Path::new(data_dir::DIRECTORY))?;
            let config = directory.config()?;
            directory.migrate(&config).await?;
            (config, Some(directory))
        }
    };
    signals.limit_to(Duration::from_secs(config.server.shutdown_seconds));
    config.log.apply().map_err(Error::local("the configuration"))?;
    let service = Service::start(&config, role).await.map_err(Error::local("starting"))?;
    signals.limit_to(service.shutdown_limit());
    if let Some(address) = service.http_address() {
        tracing::info!(%address, "probes and metrics");
    }
    if let Some(address) = service.address() {
        tracing::info!(%address, home = config.home.region, regions = config.region.len(), "serving");
        if let Some(address) = service.openapi_address() {
            tracing::info!(%address, "serving the HTTP form of the original");
        }
        if let Some(directory) = &directory {
            let token = directory.token_file();
            tracing::info!(
                "next: appferry image add --name NAME --file FILE, then appferry sync APP_ID --wait, in this directory; \
                 the administrator's token is in {}",
                token.display()
            );
        }
    } else {
        tracing::info!("working");
    }
    Ok(Started { service, _directory: directory })
}
