//! `appferry serve` and `appferry worker`.

use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};

use super::{
    Error, Result,
    embedded::{self, DataDirectory},
};
use crate::{
    config::Config,
    service::{Role, Service},
    state,
};

/// Runs until SIGTERM or SIGINT, and brings everything down in order then. At SIGHUP, who may call and what is logged are read anew.
pub async fn run(file: Option<PathBuf>, role: Role) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::local("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::local("signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::local("signals"))?;
    // Held until the end: nobody else may use the directory meanwhile.
    let (config, directory) = match file {
        Some(file) => (Config::load(&file).map_err(Error::local("the configuration"))?, None),
        None => {
            let directory = DataDirectory::open(Path::new(embedded::DIRECTORY))?;
            let config = directory.config()?;
            migrate_quietly(&config).await?;
            (config, Some(directory))
        }
    };
    config.log.apply().map_err(Error::local("the configuration"))?;
    let service = Service::start(&config, role).await.map_err(Error::local("starting"))?;
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
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => service.reload(),
        }
    }
    tracing::info!("shutting down");
    service.shutdown().await;
    tracing::info!("done");
    Ok(())
}

/// The embedded database belongs to this process alone: its schema is brought up to date without being asked.
pub async fn migrate_quietly(config: &Config) -> Result<()> {
    let settings = config.database.settings();
    state::migrate(&settings).await.map(drop).map_err(Error::local("the database"))
}
