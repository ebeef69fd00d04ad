//! One region that an image is copied to: what it misses, how it gets that, and how the image becomes visible there. Every question to the
//! region's store is asked in one place, which gives the store up when it shows no sign of progress.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream, stream::FuturesUnordered};
use tokio::sync::mpsc;
use tracing::{Instrument as _, field::Empty};

use super::{
    attach::{Lost, refused_for_absent},
    byte_channel::ChunkReceiver,
    member::Member,
};
use crate::{
    domain::{Descriptor, Progress, RegionId, Verification, Warnings},
    region::{Chunk, Error, Presence, Result, Stage, Store, Tree},
    worker::pacing::Paces,
};

/// Blobs that one region writes and verifies at the same time. Further ones wait to be delivered.
pub const WRITES_AT_ONCE: usize = 16;
/// Blobs and manifests that are looked for at the same time.
const LOOKS_AT_ONCE: usize = 16;

/// What a store reads again, in bytes a second, at the least, before it answers that it has the whole blob: it may say nothing meanwhile.
const VERIFIED_PER_SECOND: u64 = 20 << 20;

/// One region that an image is copied to.
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
    /// How fast it may be written.
    pub paces: Arc<Paces>,
    /// For how long the store may show no sign of progress.
    pub stall: Duration,
    /// How often it has resumed within this attempt after its connection broke.
    pub resumed: u32,
}

/// What a destination misses.
#[derive(Debug, Clone, Default)]
pub struct MissingBlobs {
    /// The blobs, by their places in the image, and how many of the first bytes of each it has.
    pub blobs: BTreeMap<usize, u64>,
    /// Nothing at all: the image is there and visible.
    pub nothing: bool,
    /// How it is known that what it does not miss is there.
    pub verification: Verification,
}

/// An image that has arrived.
#[derive(Debug, Clone)]
pub struct Copied {
    /// How it is known that all of it is there.
    pub verification: Verification,
    /// What it arrived without.
    pub warnings: Warnings,
}

impl From<Verification> for Copied {
    fn from(verification: Verification) -> Self {
        Self { verification, warnings: Warnings::default() }
    }
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

    /// Sets how far it has come.
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

    /// So many bytes don't come, and the image is whole without them.
    pub(super) fn lost(&self, bytes: u64) {
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn skipped(&self, bytes: u64) {
        self.skipped.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A blob that is coming.
#[derive(Debug)]
pub struct Delivery {
    /// Its place in the image.
    pub index: usize,
    /// The blob.
    pub blob: Descriptor,
    /// How many of its first bytes are there, and don't come.
    pub from: u64,
    /// Its chunks.
    pub chunks: ChunkReceiver,
}

impl Destination {
    /// Asks the store, and gives it up when nothing of this copy has moved for `stall`. What the store was doing may still hang, in the
    /// kernel for example, and is no longer waited for.
    pub(super) async fn ask<T>(&self, what: &'static str, question: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            answer = question => {
                self.stage.activity.tick();
                answer
            }
            () = self.stage.activity.silence(self.stall) => Err(Error::Stalled(what)),
        }
    }

    /// Makes room and finds out which blobs are missing. What is there already is verified.
    pub async fn plan(&self, tree: &Tree) -> Result<MissingBlobs> {
        self.meter.set(Progress { total: tree.size(), ..Progress::default() });
        self.ask("preparing the store", self.store.prepare(&self.stage)).await?;
        let complete = self.ask("looking for the image", self.store.is_complete(&self.stage, tree)).await?;
        if let Some(verification) = complete {
            self.meter.skipped(tree.size());
            return Ok(MissingBlobs { nothing: true, verification, ..MissingBlobs::default() });
        }
        let mut missing = MissingBlobs::default();
        // Boxed: a closure that is held across an await is otherwise taken for one of a single lifetime.
        let looks = tree.all_blobs().enumerate().map(|(index, blob)| self.look(tree, index, blob).boxed());
        let looks: Vec<_> = looks.collect();
        let mut looks = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let mut bytes = 0;
        while let Some((index, blob, presence)) = looks.try_next().await? {
            let there = match presence {
                Presence::Whole(known) => {
                    missing.verification = missing.verification.and(known);
                    blob.size
                }
                Presence::Part(there) => there.min(blob.size),
                Presence::Absent => 0,
            };
            self.meter.skipped(there);
            if !matches!(presence, Presence::Whole(_)) {
                missing.blobs.insert(index, there);
                bytes += blob.size - there;
            }
        }
        self.ask("reserving space", self.store.reserve(&self.stage, bytes)).await?;
        Ok(missing)
    }

    async fn look<'a>(
        &self,
        tree: &Tree,
        index: usize,
        blob: &'a Descriptor,
    ) -> Result<(usize, &'a Descriptor, Presence)> {
        let presence = match self.ask("looking for a blob", self.store.look(&self.stage, blob)).await {
            // What becomes of it shows when it is written.
            Err(_) if tree.is_attached(index) => Presence::Absent,
            presence => presence?,
        };
        Ok((index, blob, presence))
    }

    /// Takes the blobs that it misses as they come, then the manifests, and makes the image visible. `member` knows what the source could
    /// not send.
    pub async fn receive(
        &self,
        tree: &Tree,
        source: &RegionId,
        missing: MissingBlobs,
        deliveries: mpsc::Receiver<Delivery>,
        member: &Member,
    ) -> Result<Copied> {
        let received = self.take(tree, source, missing, deliveries, member).await;
        if received.is_err() {
            // What was written need not be doubted by the next attempt. If this fails too, it is.
            self.stage.journal.save().await.ok();
        }
        received
    }

    async fn take(
        &self,
        tree: &Tree,
        source: &RegionId,
        mut missing: MissingBlobs,
        mut deliveries: mpsc::Receiver<Delivery>,
        member: &Member,
    ) -> Result<Copied> {
        let MissingBlobs { nothing, verification, .. } = missing;
        let mut copied = Copied { verification, warnings: tree.warnings.clone() };
        if nothing {
            return Ok(copied);
        }
        let mut writes = FuturesUnordered::new();
        // One that is to be sent in another way is sent once the others have arrived: they need not be sent again for it.
        let mut refused = None;
        let mut lost = Lost::new();
        while !missing.blobs.is_empty() {
            tokio::select! {
                delivery = deliveries.recv(), if refused.is_none()
                    && (writes.is_empty() || (writes.len() < WRITES_AT_ONCE && !deliveries.is_closed())) => match delivery {
                    Some(delivery) => writes.push(self.write(delivery, source)),
                    None if writes.is_empty() => return Err(Error::Interrupted),
                    None => {}
                },
                Some((index, written)) = writes.next() => match written {
                    Err(error) if error.is_resent() => refused = Some(error),
                    written => {
                        missing.blobs.remove(&index);
                        if let Err(error) = written {
                            lost.insert(index, self.without_blob(tree, index, error, member)?);
                        }
                    }
                },
                else => break,
            }
        }
        drop(deliveries);
        if let Some(error) = refused {
            return Err(error);
        }
        let manifests = self.manifests_before_publication(tree);
        self.write_manifests(manifests).await.map_err(|error| refused_for_absent(error, tree))?;
        let tree: Cow<'_, Tree> = self.attach(tree, &lost, &mut copied.warnings).await?;
        self.publish(&tree, verification).await.map_err(|error| refused_for_absent(error, &tree))?;
        Ok(copied)
    }

    /// Makes the image visible, and remembers that, and how it is known that all of it is there. Of one without entries of its indexes, a later
    /// copy looks for every part: the entries may have come meanwhile.
    async fn publish(&self, tree: &Tree, verification: Verification) -> Result<()> {
        let Stage { name, journal, .. } = &self.stage;
        let Some((root, _)) = tree.manifests.last() else { return Err(Error::ImageMissing(name.to_string().into())) };
        journal.begin_publishing(name, root.digest).await?;
        self.ask("publishing the image", self.store.publish(&self.stage, tree)).await?;
        let whole = tree.absent.is_empty().then_some(verification);
        journal.note_published(name, root.digest, whole).await
    }

    /// The manifests that are written by themselves. The root comes with the publication where a store can do that; but where something is
    /// attached to it, which some registries take only after what it refers to.
    fn manifests_before_publication<'a>(&self, tree: &'a Tree) -> &'a [(Descriptor, Bytes)] {
        match tree.manifests.split_last() {
            Some(((root, _), below)) if self.store.publishes_root() && tree.attachments.is_empty() => {
                self.meter.copied(root.size);
                below
            }
            _ => &tree.manifests,
        }
    }

    /// Writes the manifests that are not there. Those that refer to others come after them.
    pub(super) async fn write_manifests(&self, manifests: &[(Descriptor, Bytes)]) -> Result<()> {
        let has = |manifest| self.ask("looking for a manifest", self.store.has_manifest(&self.stage, manifest));
        let looks: Vec<_> = manifests.iter().map(|(manifest, _)| has(manifest)).collect();
        let there: Vec<bool> = stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await?;
        for ((manifest, content), there) in manifests.iter().zip(there) {
            if !there {
                let write = self.store.write_manifest(&self.stage, manifest, content.clone());
                self.ask("writing a manifest", write).await?;
            }
            let count = if there { Meter::skipped } else { Meter::copied };
            count(&self.meter, manifest.size);
        }
        Ok(())
    }

    /// Writes one blob, counting its chunks on their way. Returns its place in the image.
    async fn write(&self, delivery: Delivery, source: &RegionId) -> (usize, Result<()>) {
        let Delivery { index, blob, from, mut chunks } = delivery;
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
        let bytes = AtomicU64::new(0);
        let count = self.count(&blob, &mut chunks, counted, &bytes);
        let write = self.ask("writing a blob", self.store.write_blob(&self.stage, &blob, from, receiver));
        let write = write.instrument(span.clone());
        tokio::pin!(write);
        let written = tokio::select! {
            written = &mut write => written,
            () = count => write.await,
        };
        let bytes = bytes.into_inner();
        span.record("appferry.blob.bytes", bytes);
        if let Err(error) = &written {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error.to_string());
            self.meter.uncopied(bytes);
        }
        (index, written)
    }

    /// Passes the chunks of a blob on to the store, and counts them.
    async fn count(
        &self,
        blob: &Descriptor,
        chunks: &mut ChunkReceiver,
        counted: mpsc::Sender<Chunk>,
        bytes: &AtomicU64,
    ) {
        let activity = &self.stage.activity;
        while let Some(chunk) = activity.excused(self.stall, chunks.recv()).await {
            let length = if let Chunk::Data(data) = &chunk { data.len() } else { 0 };
            activity.excused(self.stall, self.paces.ingress.take(length)).await;
            if counted.send(chunk).await.is_err() {
                return;
            }
            activity.tick();
            bytes.fetch_add(length as u64, Ordering::Relaxed);
            self.meter.copied(length as u64);
        }
        drop(counted);
        // A store that reads everything again before it answers is given the time for it.
        let verifying = Duration::from_secs(blob.size / VERIFIED_PER_SECOND);
        activity.excused(self.stall, tokio::time::sleep(verifying)).await;
    }
}
