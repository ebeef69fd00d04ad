//! The journal of a claim: the record that outlives its worker.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use domain::{Algorithm, Digest, ImageName, Verification};
use tokio::sync::Mutex;

use super::Result;

/// The record of a claim. It outlives the claim's worker, and holds the unfinished uploads (which the next claim of the
/// replica resumes), the written and published content, and whether the claim is still valid.
#[async_trait]
pub trait Journal: Send + Sync + std::fmt::Debug {
    /// Fails if the claim is lost. Called right before writes that a fence can't guard. Registries, for example, have
    /// no fences.
    async fn hold(&self) -> Result<()>;

    /// Returns the unfinished upload of a blob, if there is one.
    async fn upload(&self, blob: Digest) -> Result<Option<String>>;

    /// Records the beginning or the progress of an upload, before any of it can be lost.
    async fn note(&self, blob: Digest, session: &str) -> Result<()>;

    /// Removes the record of an upload that is complete or gone.
    async fn forget(&self, blob: Digest) -> Result<()>;

    /// Records an upload that the store failed to abort and that is not recorded elsewhere, so that the abort is
    /// retried later.
    async fn abandon(&self, _session: &str) -> Result<()> {
        Ok(())
    }

    /// Returns whether this copy has written the blob, in this attempt or an earlier one.
    async fn wrote(&self, _blob: Digest) -> Result<bool> {
        Ok(false)
    }

    /// Records that this copy has written the blob and that its store has verified the digest. The record may be lost
    /// before the next [`Journal::save`].
    async fn note_written(&self, _blob: Digest) -> Result<()> {
        Ok(())
    }

    /// Makes the records outlive the attempt.
    async fn save(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the recorded behavior of a registry when it accepts blobs, or `None` if there is no record or it is
    /// outdated.
    async fn registry_habits(&self, _service: &str) -> Result<Option<String>> {
        Ok(None)
    }

    /// Records the behavior of a registry when it accepts blobs, for every process that writes to the registry.
    async fn note_registry_habits(&self, _service: &str, _habits: &str) -> Result<()> {
        Ok(())
    }

    /// Returns the witness of a blob that was read at a location and had the right digest, or `None` if the blob was
    /// never read there.
    async fn reading(&self, _location: &str, _blob: Digest) -> Result<Option<Witness>> {
        Ok(None)
    }

    /// Records that a blob was read at a location and had the right digest.
    async fn note_reading(&self, _location: &str, _blob: Digest, _witness: &Witness) -> Result<()> {
        Ok(())
    }

    /// Records that a name is about to show a root, which makes the name this service's own. Fails if the claim is
    /// lost.
    async fn begin_publishing(&self, _name: &ImageName, _root: Digest) -> Result<()> {
        self.hold().await
    }

    /// Records that a name shows a root, and how the whole image was verified. The verification is `None` if a part is
    /// known to be missing.
    async fn note_published(&self, _name: &ImageName, _root: Digest, _whole: Option<Verification>) -> Result<()> {
        Ok(())
    }
}

/// A value of the store that changes when a blob is written again: its entity tag or modification time. `None` if the
/// store has no such value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Witness(pub Option<String>);

/// The longest witness that is kept verbatim, in bytes.
const MAX_WITNESS: usize = 256;

impl Witness {
    /// Creates the witness from a store's value. A long value is replaced by its digest, because the database only
    /// compares witnesses.
    pub(super) fn of(said: String) -> Self {
        Self(match said.len() {
            0 => None,
            1..=MAX_WITNESS => Some(said),
            _ => Some(Algorithm::CANONICAL.digest(said.as_bytes()).to_string()),
        })
    }
}

/// A journal in memory, which ends with its process.
#[derive(Debug, Default)]
pub struct Memory {
    uploads: Mutex<BTreeMap<Digest, String>>,
    written: Mutex<HashSet<Digest>>,
}

#[async_trait]
impl Journal for Memory {
    async fn hold(&self) -> Result<()> {
        Ok(())
    }

    async fn upload(&self, blob: Digest) -> Result<Option<String>> {
        Ok(self.uploads.lock().await.get(&blob).cloned())
    }

    async fn note(&self, blob: Digest, session: &str) -> Result<()> {
        self.uploads.lock().await.insert(blob, session.to_owned());
        Ok(())
    }

    async fn forget(&self, blob: Digest) -> Result<()> {
        self.uploads.lock().await.remove(&blob);
        Ok(())
    }

    async fn wrote(&self, blob: Digest) -> Result<bool> {
        Ok(self.written.lock().await.contains(&blob))
    }

    async fn note_written(&self, blob: Digest) -> Result<()> {
        self.written.lock().await.insert(blob);
        Ok(())
    }
}
