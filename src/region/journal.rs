//! What a claim remembers beyond its worker.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::Result;
use crate::domain::Digest;

/// What a claim remembers beyond its worker: the uploads that it has begun, so that whoever claims the replica next goes on
/// with them, and whether it is still good.
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
}

/// A journal that lives as long as its process.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<Digest, String>>);

#[async_trait]
impl Journal for Memory {
    async fn hold(&self) -> Result<()> {
        Ok(())
    }

    async fn upload(&self, blob: Digest) -> Result<Option<String>> {
        Ok(self.0.lock().await.get(&blob).cloned())
    }

    async fn note(&self, blob: Digest, session: &str) -> Result<()> {
        self.0.lock().await.insert(blob, session.to_owned());
        Ok(())
    }

    async fn forget(&self, blob: Digest) -> Result<()> {
        self.0.lock().await.remove(&blob);
        Ok(())
    }
}
