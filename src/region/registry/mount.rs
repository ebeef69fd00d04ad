//! Blobs that a registry takes from another of its repositories (OCI distribution specification 1.1, "Mounting a blob from another
//! repository"). A mount saves sending the blob, and is never more than that: whatever goes wrong with it, the blob is sent.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};
use tokio::time::{Instant, timeout};

use super::{
    RegistryStore,
    client::{Ask, Scope, what},
};
use crate::{
    domain::Digest,
    region::{Error, Result, Stage, answer::refusal},
};

/// How long a registry may take to mount a blob. It does not move any bytes for that.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a registry that failed to mount a blob is asked for none.
const PAUSE: Duration = Duration::from_secs(600);

/// Until when a registry is asked for no mounts.
#[derive(Debug, Default)]
pub(super) struct MountPause(Mutex<Option<Instant>>);

impl MountPause {
    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the registry may be asked.
    pub(super) fn is_over(&self) -> bool {
        self.until().is_none_or(|until| until <= Instant::now())
    }

    fn begin(&self) {
        *self.until() = Some(Instant::now() + PAUSE);
    }
}

impl RegistryStore {
    /// Makes the registry take a blob from another of its repositories. Returns whether it says that it did.
    pub(super) async fn mount(&self, stage: &Stage, repository: &str, blob: Digest, from: &str) -> bool {
        match timeout(PATIENCE, self.try_to_mount(stage, repository, blob, from)).await {
            Ok(Ok(mounted)) => return mounted,
            Ok(Err(error)) => {
                tracing::info!(%error, %blob, from, "mounting a blob failed; sending it");
                // One repository may be closed to us, and another one open.
                if matches!(&error, Error::Status { status, .. } if status.is_client_error()) {
                    return false;
                }
            }
            Err(_) => tracing::info!(%blob, from, "mounting a blob took too long; sending it"),
        }
        self.mount_pause.begin();
        false
    }

    /// The request for a mount. A registry that does not mount the blob begins an upload.
    pub(super) fn mount_ask(&self, repository: &str, blob: Digest, from: &str, scope: Scope) -> Result<Ask> {
        let mut url = self.client().url(&format!("{repository}/blobs/uploads/"))?;
        url.query_pairs_mut().append_pair("mount", &blob.to_string()).append_pair("from", from);
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
        Ok(Ask { method: Method::POST, url, scope, headers, body: Bytes::new() })
    }

    /// Asks for a mount once. A refusal is no error, but for one by which the registry says that it can't at the moment.
    async fn try_to_mount(&self, stage: &Stage, repository: &str, blob: Digest, from: &str) -> Result<bool> {
        let ask = self.mount_ask(repository, blob, from, Scope::mount(repository, from))?;
        let what = what(&ask.method, &ask.url);
        let response = self.client().ask_once(&ask).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // It has begun an upload in place of that.
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
