//! Who may call and what is logged, read anew while the process runs: when it is told to, and when a file that says so has changed.
//! What can't be used lets nobody in and is said loudly; whom it does not list any more is taken out all the same.

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

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the configuration")]
    Config(#[from] config::Error),
    #[error("the certificates")]
    Tls(#[from] TlsError),
    #[error("reading it did not end")]
    Ended(#[from] tokio::task::JoinError),
}

/// What is read anew.
#[derive(Debug)]
pub struct Reload {
    /// The configuration that is in force.
    pub config: Config,
    /// Who may call, where calls are answered.
    pub access: Option<Access>,
    /// Told when it is to be done at once.
    pub asked: Arc<Notify>,
}

/// Who may call.
#[derive(Debug)]
pub struct Access {
    /// Who may call, by the configuration that is in force.
    pub directory: Arc<CurrentAuthenticator>,
    /// The public keys that are fetched.
    pub fetched: JwksFetcher,
    /// The certificates.
    pub tls: Option<Arc<Tls>>,
    /// The audit log, whose file is opened anew when the service is told to.
    pub audit: Audit,
}

impl Reload {
    /// Reads anew until `stop` is canceled.
    pub async fn run(mut self, stop: CancellationToken) {
        let fetching = TaskTracker::new();
        if let Some(access) = &mut self.access {
            let mut following = JwksFetcher::default();
            following.follow(mem::take(&mut access.fetched), &fetching);
            access.fetched = following;
        }
        // The configuration was read some time ago: a change since then must not be missed.
        let mut seen = Vec::new();
        loop {
            let asked = tokio::select! {
                () = self.asked.notified() => true,
                () = tokio::time::sleep(LOOK) => false,
                () = stop.cancelled() => break,
            };
            if let Some(access) = self.access.as_ref().filter(|_| asked) {
                access.audit.reopen();
            }
            let files = if self.access.is_some() { self.config.access_files() } else { self.config.own_file() };
            let now = look(files).await;
            if !asked && now == seen {
                continue;
            }
            let first = seen.is_empty();
            // What was seen before it is read, so that a change in between is read at the next look. Files that only what is read now
            // names are not among these, so they are read once more; those of a configuration that can't be used are not, until it
            // changes itself or somebody asks.
            seen = now;
            let certificates = self.read_certificates().await;
            match self.read(&fetching).await {
                Ok(()) if first => {
                    tracing::debug!("the configuration was read again, for what has changed since the start");
                }
                Ok(()) if self.access.is_some() => tracing::info!("who may call and what is logged were read anew"),
                Ok(()) => tracing::info!("what is logged was read anew"),
                Err(error) => {
                    let counts = self.narrow().await;
                    tracing::error!(
                        error = with_causes(&error),
                        counts,
                        "the configuration was changed and can't be used; what counted before goes on counting"
                    );
                }
            }
            if let Err(error) = certificates {
                let error = with_causes(&error);
                tracing::error!(error, "the certificates were changed and can't be used; those before go on counting");
            }
        }
        drop(self.access);
        fetching.close();
        fetching.wait().await;
    }

    /// Reads the certificates, whatever is wrong with the rest.
    async fn read_certificates(&self) -> Result<(), Error> {
        let Some(tls) = self.access.as_ref().and_then(|access| access.tls.clone()) else { return Ok(()) };
        Ok(tokio::task::spawn_blocking(move || tls.reload()).await??)
    }

    async fn read(&mut self, fetching: &TaskTracker) -> Result<(), Error> {
        let (old, successor) = (self.config.clone(), self.access.as_ref().map(|access| access.fetched.successor()));
        let read = tokio::task::spawn_blocking(move || {
            let config = old.again()?;
            let access = successor.map(|mut fetched| Ok((config.directory(&mut fetched)?, fetched)));
            Ok::<_, config::Error>((access.transpose()?, config))
        });
        let (read, config) = read.await??;
        if let Some((access, (directory, fetched))) = self.access.as_mut().zip(read) {
            access.fetched.follow(fetched, fetching);
            access.directory.replace(directory);
        }
        if config.log != self.config.log {
            config.log.apply()?;
        }
        self.config = config;
        Ok(())
    }

    /// Takes out whom the configuration does not list any more, though it can't be used. Returns what counts then.
    async fn narrow(&self) -> &'static str {
        let Some(access) = &self.access else { return "what was configured before" };
        let old = self.config.clone();
        match tokio::task::spawn_blocking(move || old.listed_again()).await {
            Ok(Some(listed)) => {
                let narrowed = access.directory.load().retain_listed(&listed);
                access.directory.replace(narrowed);
                "what was configured before, without the principals, credentials and policies that are not listed any more"
            }
            _ => "all that was configured before; whom it lists now can't be read",
        }
    }
}

/// What files have in them.
async fn look(files: Vec<PathBuf>) -> Vec<(PathBuf, Option<[u8; 32]>)> {
    let digest = |file: PathBuf| {
        let content = std::fs::read(&file).ok();
        (file, content.map(|content| Sha256::digest(content).into()))
    };
    tokio::task::spawn_blocking(move || files.into_iter().map(digest).collect()).await.unwrap_or_default()
}
