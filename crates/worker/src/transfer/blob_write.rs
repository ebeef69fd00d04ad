//! Writes one blob to the store of a destination.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use domain::{Descriptor, RegionId};
use storage::{Chunk, Result};
use tokio::sync::mpsc;
use tracing::{Instrument as _, field::Empty};

use super::{
    byte_channel::ChunkReceiver,
    destination::{Delivery, Destination},
};

/// The lowest rate, in bytes a second, at which a store verifies a complete blob before it responds. The store may be
/// silent meanwhile.
const VERIFY_RATE: u64 = 20 << 20;

impl Destination {
    /// Writes a blob as its chunks arrive. Returns its index in the image.
    pub(super) async fn write_blob(&self, delivery: Delivery, source: &RegionId) -> (usize, Result<()>) {
        let Delivery { index, blob, offset, mut chunks } = delivery;
        let span = tracing::info_span!(
            "blob",
            otel.name = format!("blob {}", blob.digest),
            otel.status_code = Empty,
            otel.status_description = Empty,
            appferry.source_region_id = %source,
            appferry.region_id = %self.region,
            appferry.blob.size = blob.size,
            appferry.blob.resumed_at = offset,
            appferry.blob.bytes = Empty,
            appferry.blob.attempt = self.resumed + 1,
        );
        let (counted, receiver) = mpsc::channel(1);
        let bytes = AtomicU64::new(0);
        let count = self.forward(&blob, &mut chunks, counted, &bytes);
        let write = self.call("writing a blob", self.store.write_blob(&self.stage, &blob, offset, receiver));
        let write = write.instrument(span.clone());
        tokio::pin!(write);
        let result = tokio::select! {
            result = &mut write => result,
            () = count => write.await,
        };
        let bytes = bytes.into_inner();
        span.record("appferry.blob.bytes", bytes);
        if let Err(error) = &result {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error.to_string());
            self.meter.remove_copied(bytes);
        }
        (index, result)
    }

    /// Forwards the chunks of a blob to the store at the pace of the region, and counts them.
    async fn forward(
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
            self.meter.add_copied(length as u64);
        }
        drop(counted);
        // A store that verifies the whole blob before it responds is not stalled during the verification.
        let verifying = Duration::from_secs(blob.size / VERIFY_RATE);
        activity.excused(self.stall, tokio::time::sleep(verifying)).await;
    }
}
