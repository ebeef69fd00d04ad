//! One region of a pass: what it lacks, how it gets that, and how it becomes visible.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream, stream::FuturesUnordered};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, field::Empty};

use super::{limits::Paces, wanting::Lacking};
use crate::{
    domain::{Descriptor, Digest, Progress, RegionId, Verification},
    region::{Chunk, Error, Presence, Result, Stage, Store, Tree},
};

/// Blobs that one region writes and verifies at the same time. Further ones wait to be delivered.
pub const WRITES_AT_ONCE: usize = 16;
/// Blobs and manifests that are looked for at the same time.
const LOOKS_AT_ONCE: usize = 16;

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
    /// How fast it may be written.
    pub paces: Arc<Paces>,
    /// How often it has gone on within this attempt after its connection broke.
    pub resumed: u32,
    /// How long it waits before it looks what it lacks.
    pub rest: Duration,
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

    /// It has come so far.
    pub fn set(&self, progress: Progress) {
        self.total.store(progress.total, Ordering::Relaxed);
        self.copied.store(progress.copied, Ordering::Relaxed);
        self.skipped.store(progress.skipped, Ordering::Relaxed);
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
    /// How many of its first bytes are there, and don't come.
    pub from: u64,
    /// Its pieces.
    pub chunks: mpsc::Receiver<Chunk>,
}

impl Destination {
    /// Does a step, unless the claim is lost meanwhile.
    async fn unless_lost<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        self.lost.run_until_cancelled(step).await.unwrap_or(Err(Error::Interrupted))
    }

    /// Makes room and finds out which blobs are lacking. What is there already is verified.
    pub async fn plan(&self, tree: &Tree) -> Result<Lacking> {
        self.unless_lost(self.find_lacking(tree)).await
    }

    async fn find_lacking(&self, tree: &Tree) -> Result<Lacking> {
        self.meter.set(Progress { total: tree.size(), ..Progress::default() });
        self.store.prepare(&self.stage).await?;
        if let Some(verification) = self.store.is_complete(&self.stage, tree).await? {
            self.meter.skipped(tree.size());
            return Ok(Lacking { nothing: true, verification, ..Lacking::default() });
        }
        let mut lacking = Lacking::default();
        // Boxed: a closure that is held across an await is otherwise taken for one of a single lifetime.
        let looks: Vec<_> = tree.blobs.iter().map(|blob| self.look(blob).boxed()).collect();
        let mut looks = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let mut bytes = 0;
        while let Some((blob, presence)) = looks.try_next().await? {
            let there = match presence {
                Presence::Whole(known) => {
                    lacking.verification = lacking.verification.and(known);
                    blob.size
                }
                Presence::Part(there) => there.min(blob.size),
                Presence::Absent => 0,
            };
            self.meter.skipped(there);
            if !matches!(presence, Presence::Whole(_)) {
                lacking.blobs.insert(blob.digest, there);
                bytes += blob.size - there;
            }
        }
        self.store.reserve(bytes).await?;
        Ok(lacking)
    }

    async fn look<'a>(&self, blob: &'a Descriptor) -> Result<(&'a Descriptor, Presence)> {
        Ok((blob, self.store.look(&self.stage, blob).await?))
    }

    /// Takes the blobs that it lacks as they come, then the manifests, and makes the image visible.
    pub async fn receive(
        &self,
        tree: &Tree,
        from: &RegionId,
        lacking: Lacking,
        deliveries: mpsc::Receiver<Delivery>,
    ) -> Result<Verification> {
        let taken = self.unless_lost(self.take(tree, from, lacking, deliveries)).await;
        if taken.is_err() {
            // What was written need not be doubted by the next attempt.
            self.unless_lost(self.stage.journal.save()).await.ok();
        }
        taken
    }

    async fn take(
        &self,
        tree: &Tree,
        from: &RegionId,
        mut lacking: Lacking,
        mut deliveries: mpsc::Receiver<Delivery>,
    ) -> Result<Verification> {
        let verification = lacking.verification;
        if lacking.nothing {
            return Ok(verification);
        }
        let mut writes = FuturesUnordered::new();
        while !lacking.blobs.is_empty() {
            tokio::select! {
                delivery = deliveries.recv(),
                    if writes.is_empty() || (writes.len() < WRITES_AT_ONCE && !deliveries.is_closed()) => match delivery {
                    Some(delivery) => writes.push(self.write(delivery, from)),
                    None if writes.is_empty() => return Err(Error::Interrupted),
                    None => {}
                },
                Some(written) = writes.next() => {
                    lacking.blobs.remove(&written?);
                }
            }
        }
        self.write_manifests(tree).await?;
        self.publish(tree, verification).await?;
        Ok(verification)
    }

    /// Makes the image visible, and remembers that, and how it is known that all of it is there.
    async fn publish(&self, tree: &Tree, verification: Verification) -> Result<()> {
        let Stage { name, journal, .. } = &self.stage;
        let Some((root, _)) = tree.manifests.last() else { return Err(Error::ImageMissing(name.to_string())) };
        journal.begin_publishing(name, root.digest).await?;
        self.store.publish(&self.stage, tree).await?;
        journal.note_published(name, root.digest, verification).await
    }

    /// Writes the manifests that are not there. Those that refer to others come after them.
    async fn write_manifests(&self, tree: &Tree) -> Result<()> {
        let looks: Vec<_> =
            tree.manifests.iter().map(|(manifest, _)| self.store.has_manifest(&self.stage, manifest)).collect();
        let there: Vec<bool> = stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await?;
        for ((manifest, content), there) in tree.manifests.iter().zip(there) {
            if !there {
                self.store.write_manifest(&self.stage, manifest, content.clone()).await?;
            }
            let count = if there { Meter::skipped } else { Meter::copied };
            count(&self.meter, manifest.size);
        }
        Ok(())
    }

    /// Writes one blob, counting its pieces on their way.
    async fn write(&self, delivery: Delivery, source: &RegionId) -> Result<Digest> {
        let Delivery { blob, from, mut chunks } = delivery;
        let span = tracing::info_span!(
            "blob",
            otel.name = format!("blob {}", blob.digest),
            otel.status_code = Empty,
            otel.status_description = Empty,
            appferry.source_region_id = %source,
            appferry.region_id = %self.region,
            appferry.blob.size = blob.size,
            appferry.blob.resumed_at = from,
            appferry.blob.bytes = Empty,
            appferry.blob.attempt = self.resumed + 1,
        );
        let (counted, receiver) = mpsc::channel(1);
        let mut bytes = 0;
        let count = async {
            while let Some(chunk) = chunks.recv().await {
                let length = if let Chunk::Data(data) = &chunk { data.len() } else { 0 };
                self.paces.ingress.take(length).await;
                if counted.send(chunk).await.is_err() {
                    break;
                }
                bytes += length as u64;
                self.meter.copied(length as u64);
            }
            drop(chunks);
            drop(counted);
        };
        let write = self.store.write_blob(&self.stage, &blob, from, receiver).instrument(span.clone());
        let ((), written) = tokio::join!(count, write);
        span.record("appferry.blob.bytes", bytes);
        if let Err(error) = &written {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error.to_string());
            self.meter.uncopied(bytes);
        }
        written.map(|()| blob.digest)
    }
}
