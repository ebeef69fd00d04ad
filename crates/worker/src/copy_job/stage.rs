//! Prepares the destinations of a job: loads the service's earlier publications, and finds images from which blobs can
//! be mounted.

use std::{collections::BTreeMap, sync::Arc};

use db::{ClaimedRegion, RegionName};
use domain::{ImageName, Published, RegionId, with_causes};
use storage::{MountSources, Place, Stage, Store};

use super::CopyJob;
use crate::{active_copy::ActiveCopy, journal::ReplicaJournal, transfer::Destination};

/// The maximum number of other images of a region from which a blob may be mounted.
const MOUNT_SOURCES: u64 = 4;

impl CopyJob {
    /// Loads the record of the content that this service published under the image's name in each of the claimed
    /// regions.
    pub(super) async fn load_published(&self, copies: &[ActiveCopy]) -> BTreeMap<RegionId, Published> {
        let name = |copy: &ActiveCopy| {
            let region = copy.claimed.region.clone();
            let store = self.stores.get(&region)?;
            let name = store.name_of(&self.image);
            Some(RegionName { region, location: location(&**store, &name), name })
        };
        let names: Vec<RegionName> = copies.iter().filter_map(name).collect();
        self.worker.state.published(&names).await.unwrap_or_else(|error| {
            tracing::warn!(
                error = with_causes(&error), image = %self.image.id,
                "failed to read what was published; checking every blob"
            );
            BTreeMap::new()
        })
    }

    /// Creates the destination of a claimed region.
    pub(super) fn new_destination(
        &self,
        active: &ActiveCopy,
        store: Arc<dyn Store>,
        published: Published,
    ) -> Destination {
        let ClaimedRegion { region, fence, suspect, overwrite, .. } = &active.claimed;
        let (state, name) = (self.worker.state.clone(), store.name_of(&self.image));
        let location = location(&*store, &name);
        let journal = ReplicaJournal::new(state, self.image.id.clone(), region.clone(), *fence, location);
        let stage = Stage {
            suspect: *suspect,
            mount_sources: self.mount_sources(region, &store),
            published,
            overwrite: *overwrite,
            ..Stage::new(name, *fence, Arc::new(journal))
        };
        Destination {
            region: region.clone(),
            store,
            stage,
            meter: Arc::clone(&active.meter),
            paces: self.worker.limits.paces(region),
            stall: self.worker.settings.stall,
            resumed: 0,
        }
    }

    /// Returns the images of the same service from which blobs may be mounted instead of being sent.
    fn mount_sources(&self, region: &RegionId, store: &Arc<dyn Store>) -> MountSources {
        let Some(target) = store.place(&store.name_of(&self.image)) else { return MountSources::default() };
        let home = self.stores.get(&self.image.home).and_then(|home| home.place(&self.image.source));
        let (state, image, region) = (self.worker.state.clone(), self.image.id.clone(), region.clone());
        let store = Arc::clone(store);
        MountSources::new(async move {
            let others = state.images_in(&region, &image, MOUNT_SOURCES).await.unwrap_or_else(|error| {
                tracing::warn!(error = with_causes(&error), %region, "failed to look up mount sources; sending every blob");
                Vec::new()
            });
            let others = others.iter().filter_map(|other| store.place(&store.name_of(other)));
            let mut places: Vec<Place> = Vec::new();
            for place in home.into_iter().chain(others) {
                if place.service == target.service && place != target && !places.contains(&place) {
                    places.push(place);
                }
            }
            places
        })
    }
}

/// Returns the location of an image in a store, if the store has one.
fn location(store: &dyn Store, name: &ImageName) -> Option<String> {
    store.place(name).map(|Place { service, path }| format!("{service} {path}"))
}
