//! Reloads access and log settings while the process runs: on SIGHUP, and when one of the files has changed.
//!
//! An invalid configuration is logged as an error and grants nothing new, but the principals, credentials and policies
//! that it no longer lists are revoked.

use std::{mem, path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::Audit,
    config::{self, Config},
    domain::with_causes,
    identity::{CurrentAuthenticator, JwksFetcher},
    server::{Tls, TlsError},
};

/// The interval at which files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a reload failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the configuration is invalid")]
    Config(#[from] config::Error),
    #[error("the certificates can't be loaded")]
    Tls(#[from] TlsError),
    #[error("the reload panicked")]
    Panicked(#[from] tokio::task::JoinError),
}

/// The task that reloads the configuration of access and logs.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Reload {
    /// The active configuration.
    pub config: Config,
    /// The access to reload; `None` for a worker alone.
    pub access: Option<Access>,
    pub trigger: Arc<Notify>,
}

/// The parts of a server that define access.
#[derive(Debug)]
pub struct Access {
    /// The principals and credentials of the active configuration.
    pub directory: Arc<CurrentAuthenticator>,
    /// The fetched key sets.
    pub fetched: JwksFetcher,
    /// The certificates of the listeners; `None` without TLS.
    pub tls: Option<Arc<Tls>>,
    /// The audit log. A triggered reload reopens its file.
    pub audit: Audit,
}

impl Reload {
    /// Reloads until `stop` is canceled.
    pub async fn run(mut self, stop: CancellationToken) {
        let fetches = TaskTracker::new();
        if let Some(access) = &mut self.access {
            let mut fetched = JwksFetcher::default();
            fetched.follow(mem::take(&mut access.fetched), &fetches);
            access.fetched = fetched;
        }
        // Empty, so that the first check reloads: a file may have changed since the configuration was loaded.
        let mut digests = Vec::new();
        loop {
            let is_triggered = tokio::select! {
                () = self.trigger.notified() => true,
                () = tokio::time::sleep(CHECK_INTERVAL) => false,
                () = stop.cancelled() => break,
            };
            if let Some(access) = self.access.as_ref().filter(|_| is_triggered) {
                access.audit.reopen();
            }
            let files = if self.access.is_some() { self.config.access_files() } else { self.config.config_file() };
            let current = digest_files(files).await;
            if !is_triggered && current == digests {
                continue;
            }
            let is_first = digests.is_empty();
            // Set before the files are read, so that a change in between triggers the next reload. Files that only the
            // new configuration names are not in the list yet, so they are read a second time. Those of an invalid
            // configuration are read when it changes or a reload is triggered.
            digests = current;
            self.reload(is_first, &fetches).await;
        }
        drop(self.access);
        fetches.close();
        fetches.wait().await;
    }

    async fn reload(&mut self, is_first: bool, fetches: &TaskTracker) {
        let certificates = self.reload_certificates().await;
        match self.reload_config(fetches).await {
            Ok(()) if is_first => tracing::debug!("reloaded the configuration, for changes since the start"),
            Ok(()) if self.access.is_some() => tracing::info!("configuration reloaded: access and logs"),
            Ok(()) => tracing::info!("configuration reloaded: logs"),
            Err(error) => {
                let active = self.revoke_unlisted().await;
                let error = with_causes(&error);
                tracing::error!(error, active, "configuration reload failed; keeping the previous configuration");
            }
        }
        if let Err(error) = certificates {
            let error = with_causes(&error);
            tracing::error!(error, "certificate reload failed; keeping the previous certificates");
        }
    }

    /// Reloads the certificates, independently of the rest of the configuration.
    async fn reload_certificates(&self) -> Result<(), Error> {
        let Some(tls) = self.access.as_ref().and_then(|access| access.tls.clone()) else { return Ok(()) };
        Ok(tokio::task::spawn_blocking(move || tls.reload()).await??)
    }

    async fn reload_config(&mut self, fetches: &TaskTracker) -> Result<(), Error> {
        let (old, successor) = (self.config.clone(), self.access.as_ref().map(|access| access.fetched.successor()));
        let load = tokio::task::spawn_blocking(move || {
            let config = old.reload()?;
            let access = successor.map(|mut fetched| Ok((config.directory(&mut fetched)?, fetched)));
            Ok::<_, config::Error>((access.transpose()?, config))
        });
        let (loaded, config) = load.await??;
        if let Some((access, (directory, fetched))) = self.access.as_mut().zip(loaded) {
            access.fetched.follow(fetched, fetches);
            access.directory.replace(directory);
        }
        if config.log != self.config.log {
            config.log.apply()?;
        }
        self.config = config;
        Ok(())
    }

    /// Revokes the principals, credentials and policies that an invalid configuration no longer lists. Returns a
    /// description of the settings that stay active, for the log.
    async fn revoke_unlisted(&self) -> &'static str {
        let Some(access) = &self.access else { return "the previous log settings" };
        let old = self.config.clone();
        match tokio::task::spawn_blocking(move || old.reload_listed()).await {
            Ok(Some(listed)) => {
                let narrowed = access.directory.load().retain_listed(&listed);
                access.directory.replace(narrowed);
                "the previous configuration, except principals, credentials and policies that are no longer listed"
            }
            _ => "all of the previous configuration: the new list of principals can't be read",
        }
    }
}

/// Returns the SHA-256 of each file's content; `None` for a file that can't be read.
async fn digest_files(files: Vec<PathBuf>) -> Vec<(PathBuf, Option<[u8; 32]>)> {
    let digest = |file: PathBuf| {
        let content = std::fs::read(&file).ok();
        (file, content.map(|content| Sha256::digest(content).into()))
    };
    tokio::task::spawn_blocking(move || files.into_iter().map(digest).collect()).await.unwrap_or_default()
}
