//! Fetches the public keys of issuers, periodically and when a token names an unknown key.

use std::{collections::HashMap, fmt, path::PathBuf, time::Duration};

use reqwest::{Client, redirect::Policy};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use url::Url;

use super::{KeySet, KeySetError, SharedKeySet};
use crate::{
    domain::{ForeignText, with_causes},
    storage::server_trust::{self, TrustError},
};

/// Largest key set, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Longest duration of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest interval between requests: after an error, and after a token named an unknown key.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

/// Where the keys of an issuer are fetched from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct JwksSource {
    /// Address of the key set.
    pub url: Url,
    /// Certificates in PEM form that are trusted in addition to the system's.
    pub certificates: Option<Vec<u8>>,
    /// File with a bearer token to send.
    pub token_file: Option<PathBuf>,
    /// Interval between requests.
    pub interval: Duration,
}

impl fmt::Debug for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwksSource({})", self.url)
    }
}

/// Why a request for keys failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to read the token file")]
    Token(#[source] std::io::Error),
    #[error("the trusted certificates can't be used")]
    Trust(#[from] TrustError),
    #[error("the request failed")]
    Http(#[from] reqwest::Error),
    #[error("the key set is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    KeySet(#[from] KeySetError),
}

/// Fetches keys in background tasks. Keys are not fetched again if a new configuration keeps their source.
#[derive(Debug, Default)]
pub struct JwksFetcher {
    /// Keys of this configuration, by source.
    keys: HashMap<JwksSource, SharedKeySet>,
    /// Keys of the previous configuration, which can be reused.
    reusable: HashMap<JwksSource, SharedKeySet>,
    tasks: HashMap<JwksSource, DropGuard>,
}

impl JwksFetcher {
    /// Returns the keys of a source; empty until they are fetched.
    pub fn keys(&mut self, source: JwksSource) -> SharedKeySet {
        let keys = self.reusable.get(&source).cloned().unwrap_or_default();
        self.keys.entry(source).or_insert(keys).clone()
    }

    /// Creates the fetcher of the next configuration, which reuses the keys of this one.
    #[must_use]
    pub fn successor(&self) -> Self {
        Self { reusable: self.keys.clone(), ..Self::default() }
    }

    /// Takes over the sources of `successor`: starts tasks for new sources, and stops the tasks of removed sources. All
    /// tasks stop when the fetcher is dropped.
    pub fn follow(&mut self, successor: Self, tasks: &TaskTracker) {
        self.tasks.retain(|source, _| successor.keys.contains_key(source));
        self.keys = successor.keys;
        for (source, keys) in &self.keys {
            if !self.tasks.contains_key(source) {
                let stop = CancellationToken::new();
                let task = run(source.clone(), keys.clone());
                let stopped = stop.clone();
                tasks.spawn(async move { stopped.run_until_cancelled(task).await });
                self.tasks.insert(source.clone(), stop.drop_guard());
            }
        }
    }
}

/// Fetches the keys of one source, periodically and when a token names an unknown key.
async fn run(source: JwksSource, keys: SharedKeySet) {
    loop {
        let wait = match source.fetch().await {
            Ok(set) => {
                keys.replace(set);
                source.interval
            }
            Err(error) => {
                let error = ForeignText::message(with_causes(&error));
                tracing::error!(url = %source.url, %error, "failed to fetch public keys; keeping the previous ones, retrying");
                MIN_INTERVAL
            }
        };
        // This wait applies even if tokens keep naming unknown keys.
        tokio::time::sleep(MIN_INTERVAL.min(wait)).await;
        tokio::select! {
            () = tokio::time::sleep(wait.saturating_sub(MIN_INTERVAL)) => {}
            () = keys.missed() => {}
        }
    }
}

impl JwksSource {
    async fn fetch(&self) -> Result<KeySet, Error> {
        let mut client = Client::builder().timeout(REQUEST_TIMEOUT).redirect(Policy::none()).no_proxy();
        if let Some(certificates) = &self.certificates {
            client = client.tls_backend_preconfigured(server_trust::trusting(certificates)?);
        }
        let mut request = client.build()?.get(self.url.clone());
        if let Some(file) = &self.token_file {
            let token = tokio::fs::read_to_string(file).await.map_err(Error::Token)?;
            request = request.bearer_auth(token.trim());
        }
        let mut response = request.send().await?.error_for_status()?;
        let mut text = Vec::new();
        while let Some(part) = response.chunk().await? {
            if text.len() + part.len() > MAX_BYTES {
                return Err(Error::TooLarge);
            }
            text.extend_from_slice(&part);
        }
        Ok(KeySet::parse(&text)?)
    }
}
