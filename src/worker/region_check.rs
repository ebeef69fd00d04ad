//! Regions that come and go. Every process records which regions it has configured; the leader suspends copies to regions that no
//! process has configured any more, and looks after the images of a region whose store has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all, stream};
use tokio::time::timeout;

use crate::{
    db::{self, Db, RegionStore},
    domain::{Content, Fault, FaultKind, Image, ImageId, RegionId, with_causes},
    metrics,
    region::{self, Backend, Store},
};

/// For how many intervals of maintenance no process must have had a region configured until its copies are suspended.
const GONE: u32 = 12;
/// Images of a moved store that are looked after in one interval.
const BATCH: u64 = 256;
/// How many of them at a time.
const AT_ONCE: usize = 8;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct RegionCheck {
    state: Db,
    backend: Backend,
    /// The store of each configured region, as it may be shown.
    locations: BTreeMap<RegionId, String>,
    interval: Duration,
    /// The regions whose stores have changed, each with the image that was looked after last.
    moved: BTreeMap<RegionId, Option<ImageId>>,
    /// The regions that have been reported as not configured.
    gone: BTreeSet<RegionId>,
}

impl RegionCheck {
    /// A check that is made every `interval`.
    #[must_use]
    pub fn new(
        state: Db,
        backend: Backend,
        locations: impl IntoIterator<Item = (RegionId, String)>,
        interval: Duration,
    ) -> Self {
        let locations = locations.into_iter().collect();
        Self { state, backend, locations, interval, moved: BTreeMap::new(), gone: BTreeSet::new() }
    }

    /// What the leader does.
    pub async fn maintain(&mut self) {
        let known = match self.state.region_stores().await {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "reading the known regions failed; will retry");
                return;
            }
        };
        if let Err(error) = self.suspend(&known).await {
            tracing::warn!(error = with_causes(&error), "suspending copies failed; will retry");
        }
        if let Err(error) = self.compare(&known).await {
            tracing::warn!(error = with_causes(&error), "recording the stores of the regions failed; will retry");
        }
        // Side by side: a store that does not answer delays no other.
        let moved = self.moved.clone();
        let looks = moved.iter().map(|(region, after)| self.look(region, after.as_ref()));
        let looked = join_all(looks).await;
        for (region, looked) in moved.into_keys().zip(looked) {
            self.looked(&region, looked).await;
        }
    }

    /// Suspends what waits in regions that no process has configured.
    async fn suspend(&mut self, known: &[RegionStore]) -> db::Result<()> {
        let is_gone =
            |store: &&RegionStore| !self.locations.contains_key(&store.region) && store.unseen > self.interval * GONE;
        let gone: Vec<RegionId> = known.iter().filter(is_gone).map(|store| store.region.clone()).collect();
        self.gone.retain(|region| gone.contains(region));
        for region in &gone {
            let message = format!("{region} is not configured any more; the copy resumes when it is configured again");
            let reason = Fault::new(FaultKind::Store, message);
            let mut suspended = 0;
            loop {
                match self.state.replicas_suspend(region, &reason).await? {
                    0 => break,
                    count => suspended += count,
                }
            }
            if self.gone.insert(region.clone()) || suspended > 0 {
                tracing::warn!(%region, suspended, "region is not configured any more; its copies are suspended");
            }
        }
        if metrics::are_exported() {
            metrics::suspended(self.state.replicas_suspended(&gone).await?);
        }
        Ok(())
    }

    /// Finds the regions whose stores are not those that were recorded, and records those of new regions.
    async fn compare(&mut self, known: &[RegionStore]) -> db::Result<()> {
        for store in known {
            let Some(location) = self.locations.get(&store.region) else { continue };
            match &store.location {
                Some(recorded) if recorded == location => {}
                Some(recorded) if !self.moved.contains_key(&store.region) => {
                    let region = &store.region;
                    tracing::warn!(%region, %recorded, %location, "the region's store has changed; checking its images");
                    self.moved.insert(region.clone(), None);
                }
                Some(_) => {}
                None => self.state.region_located(&store.region, location).await?,
            }
        }
        Ok(())
    }

    /// Some images of a store that has changed have been looked after; when all have, records the store.
    async fn looked(&mut self, region: &RegionId, looked: Result<Option<ImageId>, String>) {
        match looked {
            Ok(Some(last)) => {
                self.moved.insert(region.clone(), Some(last));
            }
            Ok(None) => {
                let location = self.locations.get(region).map_or("", String::as_str);
                match self.state.region_located(region, location).await {
                    Ok(()) => {
                        self.moved.remove(region);
                        tracing::info!(%region, location, "checked the images of the region's new store");
                    }
                    Err(error) => {
                        tracing::warn!(error = with_causes(&error), %region, "recording the region's store failed; will retry");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error, %region, "checking the images of the region's new store failed; will retry");
            }
        }
    }

    /// Looks after one batch. Returns the last image of it, or nothing if there is no further one.
    async fn look(&self, region: &RegionId, after: Option<&ImageId>) -> Result<Option<ImageId>, String> {
        let images = self.state.images_available(region, after, BATCH).await.map_err(|error| with_causes(&error))?;
        let Some(last) = images.last().map(|image| image.id.clone()) else { return Ok(None) };
        // What ECS keeps is found by its account, which is another matter than where we write.
        let Some(store) = self.backend.store(region) else { return Ok(Some(last)) };
        let mut looks = stream::iter(images)
            .map(|image| async move { (is_there(&**store, &image).await, image) })
            .buffer_unordered(AT_ONCE);
        while let Some((found, image)) = looks.next().await {
            if found.map_err(|error| with_causes(&error))? {
                continue;
            }
            let location = self.locations.get(region).map_or("", String::as_str);
            let message = format!("not found in the region's new store {location}; synchronize the image again");
            tracing::warn!(image = %image.id, %region, "an image is not in the region's new store; its copy failed");
            let fault = Fault::new(FaultKind::Store, message);
            // One that has moved on meanwhile is none that is AVAILABLE.
            let _ = self.state.replica_damaged(&image.id, region, fault).await.map_err(|error| with_causes(&error))?;
        }
        Ok(Some(last))
    }
}

/// Records that this process has its regions configured, and resumes copies to them that were suspended.
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

/// Whether a store shows an image with the root that it should have.
async fn is_there(store: &dyn Store, image: &Image) -> region::Result<bool> {
    let Content::Blobs(root) = &image.content else { return Ok(true) };
    let name = store.name_of(image);
    let found = timeout(PATIENCE, store.root(&name)).await.unwrap_or(Err(region::Error::Stalled("the store")))?;
    Ok(found.is_some_and(|found| found.digest == root.digest))
}
