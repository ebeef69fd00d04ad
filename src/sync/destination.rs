//! One region of a pass: what it lacks, how it gets that, and how it becomes visible.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Descriptor, Digest, Progress, RegionId},
    region::{Chunk, Error, Result, Stage, Store, Tree},
};

/// Blobs that one region writes and verifies at the same time. Further ones wait to be delivered.
const WRITES_AT_ONCE: usize = 4;

/// One region that an image is carried to.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The region.
    pub region: RegionId,
    /// Its store.
    pub store: Arc<dyn Store>,
    /// Where the image is written.
    pub stage: Stage,
    /// How far it has come.
    pub meter: Arc<Meter>,
    /// Canceled when its claim is lost: it stops then.
    pub lost: CancellationToken,
}

/// How far a destination has come, as it happens.
#[derive(Debug, Default)]
pub struct Meter {
    total: AtomicU64,
    copied: AtomicU64,
    skipped: AtomicU64,
}

impl Meter {
    /// How far it has come.
    pub fn read(&self) -> Progress {
        Progress {
            total: self.total.load(Ordering::Relaxed),
            copied: self.copied.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }

    /// Begins anew.
    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.copied.store(0, Ordering::Relaxed);
        self.skipped.store(0, Ordering::Relaxed);
    }

    fn copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    fn uncopied(&self, bytes: u64) {
        self.copied.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn skipped(&self, bytes: u64) {
        self.skipped.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A blob that is coming.
#[derive(Debug)]
pub struct Delivery {
    /// The blob.
    pub blob: Descriptor,
    /// Its pieces.
    pub chunks: mpsc::Receiver<Chunk>,
}

impl Destination {
    /// Does a step, unless the claim is lost meanwhile.
    async fn unless_lost<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        self.lost.run_until_cancelled(step).await.unwrap_or(Err(Error::Interrupted))
    }

    /// Makes room and finds out which blobs are lacking. What is there already is verified.
    pub async fn plan(&self, tree: &Tree) -> Result<HashSet<Digest>> {
        self.unless_lost(self.find_lacking(tree)).await
    }

    async fn find_lacking(&self, tree: &Tree) -> Result<HashSet<Digest>> {
        self.meter.start(tree.size());
        self.store.prepare(&self.stage).await?;
        let mut lacking = HashSet::new();
        let mut bytes = 0;
        for blob in &tree.blobs {
            if self.store.has_blob(&self.stage, blob).await? {
                self.meter.skipped(blob.size);
            } else {
                lacking.insert(blob.digest);
                bytes += blob.size;
            }
        }
        self.store.reserve(bytes).await?;
        Ok(lacking)
    }

    /// Takes the blobs that it lacks as they come, then the manifests, and makes the image visible.
    pub async fn receive(
        &self,
        tree: &Tree,
        lacking: HashSet<Digest>,
        deliveries: mpsc::Receiver<Delivery>,
    ) -> Result<()> {
        self.unless_lost(self.take(tree, lacking, deliveries)).await
    }

    async fn take(
        &self,
        tree: &Tree,
        mut lacking: HashSet<Digest>,
        mut deliveries: mpsc::Receiver<Delivery>,
    ) -> Result<()> {
        let mut writes = FuturesUnordered::new();
        while !lacking.is_empty() {
            tokio::select! {
                delivery = deliveries.recv(),
                    if writes.is_empty() || (writes.len() < WRITES_AT_ONCE && !deliveries.is_closed()) => match delivery {
                    Some(delivery) => writes.push(self.write(delivery)),
                    None if writes.is_empty() => return Err(Error::Interrupted),
                    None => {}
                },
                Some(written) = writes.next() => {
                    lacking.remove(&written?);
                }
            }
        }
        for (manifest, content) in &tree.manifests {
            let there = self.store.has_blob(&self.stage, manifest).await?;
            if !there {
                self.store.write_manifest(&self.stage, manifest, content.clone()).await?;
            }
            let count = if there { Meter::skipped } else { Meter::copied };
            count(&self.meter, manifest.size);
        }
        match tree.manifests.last() {
            Some((root, _)) => self.store.publish(&self.stage, root).await,
            None => Err(Error::ImageMissing(self.stage.name.to_string())),
        }
    }

    /// Writes one blob, counting its pieces on their way.
    async fn write(&self, delivery: Delivery) -> Result<Digest> {
        let Delivery { blob, mut chunks } = delivery;
        let (counted, receiver) = mpsc::channel(1);
        let mut bytes = 0;
        let count = async {
            while let Some(chunk) = chunks.recv().await {
                let length = if let Chunk::Data(data) = &chunk { data.len() as u64 } else { 0 };
                if counted.send(chunk).await.is_err() {
                    break;
                }
                bytes += length;
                self.meter.copied(length);
            }
            drop(chunks);
            drop(counted);
        };
        let ((), written) = tokio::join!(count, self.store.write_blob(&self.stage, &blob, receiver));
        if written.is_err() {
            self.meter.uncopied(bytes);
        }
        written.map(|()| blob.digest)
    }
}
