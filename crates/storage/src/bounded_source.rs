//! Wraps a source with a deadline for each call.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Descriptor, Digest, ImageName};
use tokio::time::{Instant, timeout};

use super::{BlobChunks, Error, Listing, Neighbors, Result, Source};

/// Maximum duration of a call about attachments, so that they do not delay an image for longer.
const ATTACHED: Duration = Duration::from_secs(20);

/// A source whose calls each end within `deadline`. The deadline does not cover the chunks of a blob, which arrive
/// after the call.
#[derive(Debug)]
pub struct BoundedSource {
    /// The wrapped source.
    pub store: Arc<dyn Source>,
    /// The time limit of a call.
    pub deadline: Duration,
}

impl BoundedSource {
    async fn ask<T>(&self, what: &'static str, question: impl Future<Output = Result<T>>) -> Result<T> {
        timeout(self.deadline, question).await.unwrap_or(Err(Error::Stalled(what)))
    }

    async fn ask_of_attached<T>(&self, what: &'static str, question: impl Future<Output = Result<T>>) -> Result<T> {
        timeout(self.deadline.min(ATTACHED), question).await.unwrap_or(Err(Error::Stalled(what)))
    }
}

#[async_trait]
impl Source for BoundedSource {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        self.ask("looking for the image", self.store.root(name)).await
    }

    async fn root_as(&self, name: &ImageName, known: Digest) -> Result<Option<Descriptor>> {
        self.ask("looking for the image", self.store.root_as(name, known)).await
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        self.ask("reading a manifest", self.store.read_manifest(name, manifest)).await
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        self.ask("reading a blob", self.store.read_blob(name, blob, from, most)).await
    }

    async fn neighbors(&self, name: &ImageName, since: Instant) -> Result<Neighbors> {
        self.ask_of_attached("listing what is beside the image", self.store.neighbors(name, since)).await
    }

    async fn tagged(&self, name: &ImageName, tag: &str) -> Result<Option<Descriptor>> {
        self.ask_of_attached("looking for a tag", self.store.tagged(name, tag)).await
    }

    async fn referrers(&self, name: &ImageName, subject: Digest) -> Result<Option<Listing>> {
        self.ask_of_attached("listing referrers", self.store.referrers(name, subject)).await
    }

    fn is_remote(&self) -> bool {
        self.store.is_remote()
    }

    fn reads_ranges(&self) -> bool {
        self.store.reads_ranges()
    }
}
