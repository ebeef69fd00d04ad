//! What a claim remembers beyond its worker.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::Result;
use crate::domain::{Algorithm, Digest, ImageName, Verification};

/// What a claim remembers beyond its worker: the uploads that it has begun, so that whoever claims the replica next goes on
/// with them, what it has written and made visible, and whether it is still good.
#[async_trait]
pub trait Journal: Send + Sync + std::fmt::Debug {
    /// Fails if the claim is not good any more. Asked right before what a fence can't guard: a registry knows of none.
    async fn hold(&self) -> Result<()>;

    /// The upload of a blob that was begun and has not ended.
    async fn upload(&self, blob: Digest) -> Result<Option<String>>;

    /// Remembers how far an upload has come, or that it has begun; before anything of it can be lost.
    async fn note(&self, blob: Digest, session: &str) -> Result<()>;

    /// Forgets an upload: it is done, or gone.
    async fn forget(&self, blob: Digest) -> Result<()>;

    /// Remembers an upload that the store did not abort when it was asked, and that nothing else knows of, so that it is asked again later.
    async fn abandon(&self, _session: &str) -> Result<()> {
        Ok(())
    }

    /// Whether this copy has written the blob, in this attempt or an earlier one.
    async fn wrote(&self, _blob: Digest) -> Result<bool> {
        Ok(false)
    }

    /// Remembers that this copy has written the blob, and that its store has checked its digest. It may be lost until
    /// [`Journal::save`].
    async fn note_written(&self, _blob: Digest) -> Result<()> {
        Ok(())
    }

    /// Makes what was noted last outlive the attempt.
    async fn save(&self) -> Result<()> {
        Ok(())
    }

    /// What was learned about how a registry takes blobs, as it was noted; nothing if nothing was, or that is long ago.
    async fn registry_habits(&self, _service: &str) -> Result<Option<String>> {
        Ok(None)
    }

    /// Remembers what was learned about how a registry takes blobs, for every process that writes to it.
    async fn note_registry_habits(&self, _service: &str, _habits: &str) -> Result<()> {
        Ok(())
    }

    /// What the store said of a blob at a location when it was read there and had its digest; nothing if it never was.
    async fn reading(&self, _location: &str, _blob: Digest) -> Result<Option<Witness>> {
        Ok(None)
    }

    /// Remembers that a blob at a location was read and had its digest.
    async fn note_reading(&self, _location: &str, _blob: Digest, _witness: &Witness) -> Result<()> {
        Ok(())
    }

    /// Remembers that a name is about to show a root, so that it is this service's own from then on. Fails if the claim is not good any
    /// more.
    async fn begin_publishing(&self, _name: &ImageName, _root: Digest) -> Result<()> {
        self.hold().await
    }

    /// Remembers that a name shows a root, and how it is known that all of it is there; nothing if something is known to be lacking.
    async fn note_published(&self, _name: &ImageName, _root: Digest, _whole: Option<Verification>) -> Result<()> {
        Ok(())
    }
}

/// What a store says of a blob that changes when it is written again: its entity tag, the time at which it was written. Nothing where
/// the store says no such thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Witness(pub Option<String>);

/// The longest witness that is kept as it is, in bytes.
const MAX_WITNESS: usize = 256;

impl Witness {
    /// What a store says. It is kept in the database, and only ever compared: of what is long, its digest does as well.
    pub(super) fn of(said: String) -> Self {
        Self(match said.len() {
            0 => None,
            1..=MAX_WITNESS => Some(said),
            _ => Some(Algorithm::CANONICAL.digest(said.as_bytes()).to_string()),
        })
    }
}

/// A journal that lives as long as its process.
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
