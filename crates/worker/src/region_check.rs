//! Tracks which regions are configured. Every process records its configured regions; the leader suspends copies to
//! regions that no process has configured any more, and checks the images of a region whose store has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use db::{self, Db, RegionStore};
use domain::{Content, Fault, FaultKind, Image, ImageId, RegionId, with_causes};
use futures_util::{StreamExt as _, future::join_all, stream};
use instrumentation::metrics;
use storage::{self, Backend, Store};
use tokio::time::timeout;

/// Number of maintenance intervals after which a region that no process has recorded counts as no longer configured.
const UNSEEN_INTERVALS: u32 = 12;
/// Number of images of a changed store that are checked in one interval.
const BATCH: u64 = 256;
/// Number of images that are checked concurrently.
const CONCURRENCY: usize = 8;
/// The time limit for checking one image.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The leader's check of the recorded regions.
#[derive(Debug)]
pub struct RegionCheck {
    state: Db,
    backend: Backend,
    /// The location of each configured region's store, without secrets.
    locations: BTreeMap<RegionId, String>,
    interval: Duration,
    /// The regions whose stores have changed, each with the last image that was checked.
    changed: BTreeMap<RegionId, Option<ImageId>>,
    /// The regions that were logged as no longer configured.
    unconfigured: BTreeSet<RegionId>,
}

impl RegionCheck {
    /// Creates a check that is run every `interval`.
    #[must_use]
    pub fn new(
        state: Db,
        backend: Backend,
        locations: impl IntoIterator<Item = (RegionId, String)>,
        interval: Duration,
    ) -> Self {
        let locations = locations.into_iter().collect();
        Self { state, backend, locations, interval, changed: BTreeMap::new(), unconfigured: BTreeSet::new() }
    }

    /// Runs the check once.
    pub async fn maintain(&mut self) {
        let recorded = match self.state.region_stores().await {
            Ok(recorded) => recorded,
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "failed to read the recorded regions; will retry");
                return;
            }
        };
        if let Err(error) = self.suspend(&recorded).await {
            tracing::warn!(error = with_causes(&error), "failed to suspend copies; will retry");
        }
        if let Err(error) = self.compare(&recorded).await {
            tracing::warn!(error = with_causes(&error), "failed to record the stores of the regions; will retry");
        }
        // Checks regions concurrently, so that a store that hangs does not delay the others.
        let changed = self.changed.clone();
        let checks = changed.iter().map(|(region, after)| self.check_batch(region, after.as_ref()));
        let results = join_all(checks).await;
        for (region, result) in changed.into_keys().zip(results) {
            self.record_batch(&region, result).await;
        }
    }

    /// Suspends the waiting copies to regions that no process has configured.
    async fn suspend(&mut self, recorded: &[RegionStore]) -> db::Result<()> {
        let is_unconfigured = |store: &&RegionStore| {
            !self.locations.contains_key(&store.region) && store.unseen > self.interval * UNSEEN_INTERVALS
        };
        let unconfigured: Vec<RegionId> =
            recorded.iter().filter(is_unconfigured).map(|store| store.region.clone()).collect();
        self.unconfigured.retain(|region| unconfigured.contains(region));
        for region in &unconfigured {
            let message = format!("{region} is not configured any more; the copy resumes when it is configured again");
            let reason = Fault::new(FaultKind::Store, message);
            let mut suspended = 0;
            loop {
                match self.state.replicas_suspend(region, &reason).await? {
                    0 => break,
                    count => suspended += count,
                }
            }
            if self.unconfigured.insert(region.clone()) || suspended > 0 {
                tracing::warn!(%region, suspended, "region is not configured any more; its copies are suspended");
            }
        }
        if metrics::are_exported() {
            metrics::set_suspended(self.state.replicas_suspended(&unconfigured).await?);
        }
        Ok(())
    }

    /// Finds regions whose store differs from the recorded one, and records the stores of new regions.
    async fn compare(&mut self, recorded: &[RegionStore]) -> db::Result<()> {
        for store in recorded {
            let Some(location) = self.locations.get(&store.region) else { continue };
            match &store.location {
                Some(recorded) if recorded == location => {}
                Some(recorded) if !self.changed.contains_key(&store.region) => {
                    let region = &store.region;
                    tracing::warn!(%region, %recorded, %location, "the region's store has changed; checking its images");
                    self.changed.insert(region.clone(), None);
                }
                Some(_) => {}
                None => self.state.region_located(&store.region, location).await?,
            }
        }
        Ok(())
    }

    /// Remembers how far the images of a changed store have been checked. After the last image, records the new store.
    async fn record_batch(&mut self, region: &RegionId, result: Result<Option<ImageId>, String>) {
        match result {
            Ok(Some(last)) => {
                self.changed.insert(region.clone(), Some(last));
            }
            Ok(None) => {
                let location = self.locations.get(region).map_or("", String::as_str);
                match self.state.region_located(region, location).await {
                    Ok(()) => {
                        self.changed.remove(region);
                        tracing::info!(%region, location, "checked the images of the region's new store");
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = with_causes(&error), %region,
                            "failed to record the region's new store; will retry"
                        );
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error, %region, "failed to check the images of the region's new store; will retry");
            }
        }
    }

    /// Checks one batch of images. Returns the last image of the batch, or `None` after the last batch.
    async fn check_batch(&self, region: &RegionId, after: Option<&ImageId>) -> Result<Option<ImageId>, String> {
        let images = self.state.images_available(region, after, BATCH).await.map_err(|error| with_causes(&error))?;
        let Some(last) = images.last().map(|image| image.id.clone()) else { return Ok(None) };
        // ECS images are found by their account, independently of the location.
        let Some(store) = self.backend.store(region) else { return Ok(Some(last)) };
        let mut checks = stream::iter(images)
            .map(|image| async move { (has_image(&**store, &image).await, image) })
            .buffer_unordered(CONCURRENCY);
        while let Some((is_present, image)) = checks.next().await {
            if is_present.map_err(|error| with_causes(&error))? {
                continue;
            }
            let location = self.locations.get(region).map_or("", String::as_str);
            let message = format!("not found in the region's new store {location}; synchronize the image again");
            tracing::warn!(image = %image.id, %region, "an image is not in the region's new store; its copy failed");
            let fault = Fault::new(FaultKind::Store, message);
            // A replica that is no longer AVAILABLE is left as it is.
            let _ = self.state.replica_damaged(&image.id, region, fault).await.map_err(|error| with_causes(&error))?;
        }
        Ok(Some(last))
    }
}

/// Records that this process has its regions configured, and resumes the suspended copies to them.
pub async fn record_configured(state: &Db, interval: Duration) {
    if let Err(error) = state.regions_seen(interval).await {
        tracing::warn!(error = with_causes(&error), "failed to record the configured regions; will retry");
    }
    loop {
        match state.replicas_resume().await {
            Ok(0) => break,
            Ok(count) => tracing::info!(count, "resuming copies to regions that are configured again"),
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "failed to resume suspended copies; will retry");
                break;
            }
        }
    }
}

/// Whether a store has an image under its name, with the registered root.
async fn has_image(store: &dyn Store, image: &Image) -> storage::Result<bool> {
    let Content::Blobs(root) = &image.content else { return Ok(true) };
    let name = store.name_of(image);
    let existing = timeout(IMAGE_TIMEOUT, store.root_as(&name, root.digest)).await;
    let existing = existing.unwrap_or(Err(storage::Error::Stalled("the store")))?;
    Ok(existing.is_some_and(|existing| existing.digest == root.digest))
}
