//! Assigns sources to the copies of a job and starts their transfers.

use std::sync::Arc;

use domain::{RegionId, with_causes};
use storage::Error;
use tracing::Instrument as _;

use super::CopyJob;
use crate::{
    slots::Slot,
    transfer::{CopyError, ImageSource, Transfer, Waits},
};

impl CopyJob {
    /// Starts a transfer for every waiting copy for which a source has a slot.
    pub(super) async fn start_transfers(&mut self) {
        let waiting = self.copies.iter().filter(|(_, copy)| copy.transfer.is_none());
        let waiting: Vec<RegionId> = waiting.map(|(region, _)| region.clone()).collect();
        if waiting.is_empty() {
            return;
        }
        if self.sources.is_empty() {
            for region in waiting {
                let error = self.source_error();
                self.finish_copy(region, Err(error)).await;
            }
            return;
        }
        for (source, slots) in self.worker.limits.assign(&self.sources, &waiting) {
            let slots = self.reserve_egress(&source, slots).await;
            let Some(transfer) = self.transfer_from(&source) else { continue };
            // All copies are announced before the first one starts, so that the transfer waits a little for the others.
            let announced: Vec<_> =
                slots.into_iter().map(|(region, slot)| (region, slot, transfer.announce())).collect();
            for (region, slot, pending_join) in announced {
                let Some(copy) = self.copies.get_mut(&region) else { continue };
                copy.active.span.record("appferry.source_region_id", source.as_str());
                let (transfer, destination) = (Arc::clone(&transfer), copy.destination.clone());
                let lost = copy.active.lost.clone();
                let copying = async move {
                    let result = lost.run_until_cancelled(transfer.copy_to(destination, pending_join)).await;
                    result.unwrap_or_else(|| Err(Error::Overtaken.into()))
                };
                let task = self.tasks.spawn(copying.instrument(copy.active.span.clone())).id();
                copy.transfer = Some((slot.in_use(), task));
            }
        }
    }

    /// Returns the error of a copy for which no source is left.
    pub(super) fn source_error(&self) -> CopyError {
        let missing = || CopyError::Source {
            region: self.image.home.clone(),
            error: Arc::new(Error::ImageMissing(
                format!("{} (the region is not configured, and no other has it)", self.image.id).into(),
            )),
            is_remote: false,
        };
        self.source_failure.clone().unwrap_or_else(missing)
    }

    /// Returns the open transfer from `source`; starts one if there is none.
    fn transfer_from(&mut self, source: &RegionId) -> Option<Arc<Transfer>> {
        self.transfers.retain(|_, transfer| !transfer.is_closed());
        if let Some(transfer) = self.transfers.get(source) {
            return Some(Arc::clone(transfer));
        }
        let store = self.stores.get(source)?.clone();
        let name = if *source == self.image.home { self.image.source.clone() } else { store.name_of(&self.image) };
        let paces = self.worker.limits.paces(source);
        let absent = self.image.absent.as_slice().into();
        let image = ImageSource { region: source.clone(), store, name, root: self.root.clone(), absent, paces };
        let settings = &self.worker.settings;
        let waits = Waits { patience: settings.patience, stall: settings.stall };
        let transfer = Arc::new(Transfer::start(image, waits));
        self.transfers.insert(source.clone(), Arc::clone(&transfer));
        Some(transfer)
    }

    /// Returns the `slots` for which the egress limit of `source` over all processes leaves room. The others are
    /// retried at the next heartbeat.
    async fn reserve_egress(&self, source: &RegionId, slots: Vec<(RegionId, Slot)>) -> Vec<(RegionId, Slot)> {
        let limits = self.worker.limits.copies_out_of();
        if !limits.contains_key(source) {
            return slots;
        }
        let feed = |region: &RegionId| {
            self.copies.get(region).map(|copy| (region.clone(), copy.active.claimed.fence, source.clone()))
        };
        let feeds: Vec<_> = slots.iter().filter_map(|(region, _)| feed(region)).collect();
        let reserved = self.worker.state.reserve_egress(&self.image.id, &feeds, limits).await.unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), image = %self.image.id, "failed to reserve egress; will retry");
            Vec::new()
        });
        slots.into_iter().filter(|(region, _)| reserved.contains(region)).collect()
    }
}
