//! Public keys that are fetched from their issuer, now and again.

use std::{collections::HashMap, fmt, path::PathBuf, time::Duration};

use reqwest::{Client, redirect::Policy};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use url::Url;

use super::{KeySet, KeySetError, Keys};
use crate::{
    domain::{ForeignText, with_causes},
    server_trust::{self, TrustError},
};

/// The largest key set that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// How long fetching one may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon they are fetched again that could not be fetched, or among which one was missed.
const AGAIN: Duration = Duration::from_secs(5);

/// Where keys are fetched from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// The key set.
    pub url: Url,
    /// Certificates in PEM form that are trusted beside the system's.
    pub certificates: Option<Vec<u8>>,
    /// The file with a bearer token to show.
    pub token_file: Option<PathBuf>,
    /// How often.
    pub every: Duration,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetch({})", self.url)
    }
}

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the token can't be read")]
    Token(#[source] std::io::Error),
    #[error("the certificates that are trusted can't be used")]
    Trust(#[from] TrustError),
    #[error("it can't be had")]
    Http(#[from] reqwest::Error),
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    KeySet(#[from] KeySetError),
}

/// The keys that are fetched. They outlive a change of the configuration that leaves them alone.
#[derive(Debug, Default)]
pub struct Fetched {
    /// What the configuration asked for.
    keys: HashMap<Fetch, Keys>,
    /// What its predecessor had.
    known: HashMap<Fetch, Keys>,
    tasks: HashMap<Fetch, DropGuard>,
}

impl Fetched {
    /// The keys from there, which come once they are fetched.
    pub fn keys(&mut self, from: Fetch) -> Keys {
        let known = self.known.get(&from).cloned().unwrap_or_default();
        self.keys.entry(from).or_insert(known).clone()
    }

    /// One to read another configuration with: the keys that it asks for are those that there are.
    #[must_use]
    pub fn successor(&self) -> Self {
        Self { known: self.keys.clone(), ..Self::default() }
    }

    /// Fetches what its successor was asked for, and nothing else, until this is dropped.
    pub fn follow(&mut self, successor: Self, tasks: &TaskTracker) {
        self.tasks.retain(|from, _| successor.keys.contains_key(from));
        self.keys = successor.keys;
        for (from, keys) in &self.keys {
            if !self.tasks.contains_key(from) {
                let stop = CancellationToken::new();
                let task = run(from.clone(), keys.clone());
                let stopped = stop.clone();
                tasks.spawn(async move { stopped.run_until_cancelled(task).await });
                self.tasks.insert(from.clone(), stop.drop_guard());
            }
        }
    }
}

/// Fetches keys for ever.
async fn run(from: Fetch, keys: Keys) {
    loop {
        let wait = match from.fetch().await {
            Ok(set) => {
                keys.replace(set);
                from.every
            }
            Err(error) => {
                tracing::error!(url = %from.url, error = %ForeignText::message(with_causes(&error)), "public keys could not be fetched; the old ones count");
                AGAIN
            }
        };
        // Not sooner, however many tokens name keys that nobody has.
        tokio::time::sleep(AGAIN.min(wait)).await;
        tokio::select! {
            () = tokio::time::sleep(wait.saturating_sub(AGAIN)) => {}
            () = keys.missed() => {}
        }
    }
}

impl Fetch {
    async fn fetch(&self) -> Result<KeySet, Error> {
        let mut client = Client::builder().timeout(PATIENCE).redirect(Policy::none()).no_proxy();
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
