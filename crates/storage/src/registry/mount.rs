//! Cross-repository mounts of blobs (OCI distribution specification 1.1, "Mounting a blob from another repository"). A
//! mount only saves sending the blob. If it fails for any reason, the blob is sent.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use domain::Digest;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};
use tokio::time::{Instant, timeout};

use super::{
    RegistryStore,
    client::{Ask, Scope, what},
};
use crate::{Error, Result, Stage, http_response::refusal};

/// Timeout of a mount. A mount moves no bytes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long no mounts are requested after a failed mount.
const PAUSE: Duration = Duration::from_secs(600);

/// End of the pause in which no mounts are requested from a registry.
#[derive(Debug, Default)]
pub(super) struct MountPause(Mutex<Option<Instant>>);

impl MountPause {
    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether mounts may be requested.
    pub(super) fn is_over(&self) -> bool {
        self.until().is_none_or(|until| until <= Instant::now())
    }

    fn begin(&self) {
        *self.until() = Some(Instant::now() + PAUSE);
    }
}

impl RegistryStore {
    /// Requests a mount of a blob from another repository. Returns whether the registry reports success.
    pub(super) async fn mount(&self, stage: &Stage, repository: &str, blob: Digest, from: &str) -> bool {
        match timeout(PATIENCE, self.try_to_mount(stage, repository, blob, from)).await {
            Ok(Ok(mounted)) => return mounted,
            Ok(Err(error)) => {
                tracing::info!(%error, %blob, from, "failed to mount a blob; sending it");
                // Access to this repository may be denied while access to another one is granted.
                if matches!(&error, Error::Status { status, .. } if status.is_client_error()) {
                    return false;
                }
            }
            Err(_) => tracing::info!(%blob, from, "mounting a blob timed out; sending it"),
        }
        self.mount_pause.begin();
        false
    }

    /// Returns the request for a mount. A registry that does not mount the blob starts an upload instead.
    pub(super) fn mount_ask(&self, repository: &str, blob: Digest, from: &str, scope: Scope) -> Result<Ask> {
        let mut url = self.client().url(&format!("{repository}/blobs/uploads/"))?;
        url.query_pairs_mut().append_pair("mount", &blob.to_string()).append_pair("from", from);
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
        Ok(Ask { method: Method::POST, url, scope, headers, body: Bytes::new() })
    }

    /// Requests a mount once. Returns `false` if the registry refuses it. Fails on a server error (5xx) or if there is
    /// no response.
    async fn try_to_mount(&self, stage: &Stage, repository: &str, blob: Digest, from: &str) -> Result<bool> {
        let ask = self.mount_ask(repository, blob, from, Scope::mount(repository, from))?;
        let what = what(&ask.method, &ask.url);
        let response = self.client().ask_once(&ask).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // The registry has started an upload instead.
                if let Ok(upload) = self.begun_at(repository, &what, &ask.url, response.headers()) {
                    self.abort_needless(stage, &upload).await;
                }
                Ok(false)
            }
            status if status.is_server_error() => Err(refusal(&what, response).await),
            _ => Ok(false),
        }
    }
}
