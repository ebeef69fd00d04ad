//! Copies an image to one region: finds the missing blobs, writes them as they arrive, and publishes the image. Every
//! call of the region's store goes through [`Destination::call`], which aborts the call when the copy makes no
//! progress.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{Descriptor, Progress, RegionId, Verification, Warnings};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream, stream::FuturesUnordered};
use storage::{Error, ManifestGraph, Presence, Result, Stage, Store};
use tokio::sync::mpsc;

use super::{
    attach::{LostBlobs, explain_absent},
    byte_channel::ChunkReceiver,
    member::Member,
    meter::Meter,
};
use crate::pacing::Paces;

/// The number of blobs that one region writes and verifies concurrently. Further blobs wait for their delivery.
pub const WRITE_CONCURRENCY: usize = 16;
/// The number of blobs or manifests that are looked up concurrently.
const STAT_CONCURRENCY: usize = 16;

/// A region that an image is copied to.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Destination {
    pub region: RegionId,
    /// The store of the region.
    pub store: Arc<dyn Store>,
    /// The context of the copy for the store: name, fence, journal, mount sources.
    pub stage: Stage,
    /// The progress of the copy.
    pub meter: Arc<Meter>,
    /// The rate limiters of the region.
    pub paces: Arc<Paces>,
    /// How long the store may make no progress.
    pub stall: Duration,
    /// How often the copy was resumed within this attempt after its connection broke.
    pub resumed: u32,
}

/// The blobs that a destination misses.
#[derive(Debug, Clone, Default)]
pub struct MissingBlobs {
    /// The missing blobs by their index in the image, each with the number of leading bytes that the store has.
    pub blobs: BTreeMap<usize, u64>,
    /// Whether the image is present and visible, so that nothing is missing.
    pub is_complete: bool,
    /// How the presence of the other blobs was verified.
    pub verification: Verification,
}

/// The result of a successful copy.
#[derive(Debug, Clone)]
pub struct CopySummary {
    /// How the presence of the whole image was verified.
    pub verification: Verification,
    /// Attachments that were not copied, with the reasons.
    pub warnings: Warnings,
}

impl From<Verification> for CopySummary {
    fn from(verification: Verification) -> Self {
        Self { verification, warnings: Warnings::default() }
    }
}

/// A blob that is about to arrive.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Delivery {
    /// The blob's index in the image.
    pub index: usize,
    pub blob: Descriptor,
    /// The number of leading bytes that the store has and that are not sent.
    pub offset: u64,
    /// The chunks after `offset`.
    pub chunks: ChunkReceiver,
}

impl Destination {
    /// Calls the store and fails with [`Error::Stalled`] when the copy has made no progress for `stall`. The operation
    /// itself may still hang, for example in the kernel, and is abandoned.
    pub(super) async fn call<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            result = call => {
                self.stage.activity.tick();
                result
            }
            () = self.stage.activity.silence(self.stall) => Err(Error::Stalled(operation)),
        }
    }

    /// Prepares the store and finds the missing blobs. Verifies the blobs that are present.
    pub async fn plan(&self, tree: &ManifestGraph) -> Result<MissingBlobs> {
        self.meter.set(Progress { total: tree.size(), ..Progress::default() });
        self.call("preparing the store", self.store.prepare(&self.stage)).await?;
        let complete = self.call("looking for the image", self.store.is_complete(&self.stage, tree)).await?;
        if let Some(verification) = complete {
            self.meter.add_skipped(tree.size());
            return Ok(MissingBlobs { is_complete: true, verification, ..MissingBlobs::default() });
        }
        let mut missing = MissingBlobs::default();
        // Boxed, because the compiler infers a single lifetime for a closure that is held across an await.
        let stats = tree.all_blobs().enumerate().map(|(index, blob)| self.stat(tree, index, blob).boxed());
        let stats: Vec<_> = stats.collect();
        let mut stats = stream::iter(stats).buffer_unordered(STAT_CONCURRENCY);
        let mut bytes = 0;
        while let Some((index, blob, presence)) = stats.try_next().await? {
            let present = match presence {
                Presence::Whole(verification) => {
                    missing.verification = missing.verification.and(verification);
                    blob.size
                }
                Presence::Part(present) => present.min(blob.size),
                Presence::Absent => 0,
            };
            self.meter.add_skipped(present);
            if !matches!(presence, Presence::Whole(_)) {
                missing.blobs.insert(index, present);
                bytes += blob.size - present;
            }
        }
        self.call("reserving space", self.store.reserve(&self.stage, bytes)).await?;
        Ok(missing)
    }

    async fn stat<'a>(
        &self,
        tree: &ManifestGraph,
        index: usize,
        blob: &'a Descriptor,
    ) -> Result<(usize, &'a Descriptor, Presence)> {
        let presence = match self.call("looking for a blob", self.store.stat_blob(&self.stage, blob)).await {
            // An attachment is optional. If the error occurs again when the attachment is written, it becomes a
            // warning.
            Err(_) if tree.is_attached(index) => Presence::Absent,
            presence => presence?,
        };
        Ok((index, blob, presence))
    }

    /// Writes the missing blobs as they arrive, then the manifests, and publishes the image. `member` has the errors of
    /// blobs that the source could not send.
    pub async fn receive(
        &self,
        tree: &ManifestGraph,
        source: &RegionId,
        missing: MissingBlobs,
        deliveries: mpsc::Receiver<Delivery>,
        member: &Member,
    ) -> Result<CopySummary> {
        let result = self.receive_all(tree, source, missing, deliveries, member).await;
        if result.is_err() {
            // The next attempt need not verify blobs that are recorded as written. If saving fails too, it verifies
            // them.
            self.stage.journal.save().await.ok();
        }
        result
    }

    async fn receive_all(
        &self,
        tree: &ManifestGraph,
        source: &RegionId,
        mut missing: MissingBlobs,
        mut deliveries: mpsc::Receiver<Delivery>,
        member: &Member,
    ) -> Result<CopySummary> {
        let MissingBlobs { is_complete, verification, .. } = missing;
        let mut summary = CopySummary { verification, warnings: tree.warnings.clone() };
        if is_complete {
            return Ok(summary);
        }
        let mut writes = FuturesUnordered::new();
        // A blob that the registry wants uploaded in another mode is sent after the others, so that these are not sent
        // again.
        let mut rejected = None;
        let mut lost = LostBlobs::new();
        while !missing.blobs.is_empty() {
            tokio::select! {
                delivery = deliveries.recv(), if rejected.is_none()
                    && (writes.is_empty() || (writes.len() < WRITE_CONCURRENCY && !deliveries.is_closed())) => match delivery {
                    Some(delivery) => writes.push(self.write_blob(delivery, source)),
                    None if writes.is_empty() => return Err(Error::Interrupted),
                    None => {}
                },
                Some((index, result)) = writes.next() => match result {
                    Err(error) if error.is_resent() => rejected = Some(error),
                    result => {
                        missing.blobs.remove(&index);
                        if let Err(error) = result {
                            lost.insert(index, self.without_blob(tree, index, error, member)?);
                        }
                    }
                },
                else => break,
            }
        }
        drop(deliveries);
        if let Some(error) = rejected {
            return Err(error);
        }
        let manifests = self.manifests_before_publication(tree);
        self.write_manifests(manifests).await.map_err(|error| explain_absent(error, tree))?;
        let tree: Cow<'_, ManifestGraph> = self.attach(tree, &lost, &mut summary.warnings).await?;
        self.publish(&tree, verification).await.map_err(|error| explain_absent(error, &tree))?;
        Ok(summary)
    }

    /// Makes the image visible and records that in the journal, with its verification. An image without some entries of
    /// its indexes counts as incomplete: a later copy checks every part, because the entries may have appeared.
    async fn publish(&self, tree: &ManifestGraph, verification: Verification) -> Result<()> {
        let Stage { name, journal, .. } = &self.stage;
        let Some((root, _)) = tree.manifests.last() else { return Err(Error::ImageMissing(name.to_string().into())) };
        journal.begin_publishing(name, root.digest).await?;
        self.call("publishing the image", self.store.publish(&self.stage, tree)).await?;
        let verification = tree.absent.is_empty().then_some(verification);
        journal.note_published(name, root.digest, verification).await
    }

    /// Returns the manifests that are written before the publication. The root is part of the publication where the
    /// store supports that, unless something is attached to it: some registries accept an attachment only after its
    /// subject.
    fn manifests_before_publication<'a>(&self, tree: &'a ManifestGraph) -> &'a [(Descriptor, Bytes)] {
        match tree.manifests.split_last() {
            Some(((root, _), below)) if self.store.publishes_root() && tree.attachments.is_empty() => {
                self.meter.add_copied(root.size);
                below
            }
            _ => &tree.manifests,
        }
    }

    /// Writes the missing manifests in order: a manifest comes after those that it refers to.
    pub(super) async fn write_manifests(&self, manifests: &[(Descriptor, Bytes)]) -> Result<()> {
        let has = |manifest| self.call("looking for a manifest", self.store.has_manifest(&self.stage, manifest));
        let stats: Vec<_> = manifests.iter().map(|(manifest, _)| has(manifest)).collect();
        let present: Vec<bool> = stream::iter(stats).buffered(STAT_CONCURRENCY).try_collect().await?;
        for ((manifest, content), present) in manifests.iter().zip(present) {
            if !present {
                let write = self.store.write_manifest(&self.stage, manifest, content.clone());
                self.call("writing a manifest", write).await?;
            }
            let count = if present { Meter::add_skipped } else { Meter::add_copied };
            count(&self.meter, manifest.size);
        }
        Ok(())
    }
}
