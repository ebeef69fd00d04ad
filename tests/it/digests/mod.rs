//! Images with SHA-512 digests for all or some of their parts are copied like others. A registry without support for
//! the algorithm fails with an error that names it.

mod attached;
mod registries;
mod stores;

use appferry::contract::v1::{
    GetImageRequest, RegionState, RegionSynchronization, Synchronization, SynchronizationState,
};

use crate::harness::{
    images::{self, Algorithms},
    site::{HOME, Running, register},
};

const WHOLE: Algorithms = Algorithms { manifest: "sha512", config: "sha512", layers: "sha512" };
const LAYERS: Algorithms = Algorithms { manifest: "sha256", config: "sha256", layers: "sha512" };
const MANIFEST: Algorithms = Algorithms { manifest: "sha512", config: "sha256", layers: "sha256" };

/// Writes an image to the home region and registers it. Returns the digest of its root.
async fn add(running: &Running, name: &str, by: Algorithms, layers: &[Vec<u8>]) -> String {
    let root = images::write_by(by, &running.site.image(HOME, name), layers);
    register(&mut running.images().await, name).await;
    assert_eq!(root_of(running, name).await, root);
    root
}

/// Returns the digest of an image in the API.
async fn root_of(running: &Running, name: &str) -> String {
    let request = GetImageRequest { image_id: name.to_owned(), ..Default::default() };
    let answer = running.images().await.get_image(request).await.expect("it is known").into_inner();
    let image = answer.image.expect("an image");
    for region in &image.additional_regions_info {
        assert_eq!(region.shown_digest, "", "nothing else is shown: {region:?}");
    }
    image.digest
}

async fn finished(running: &Running, app: &str, regions: &[&str]) -> Synchronization {
    let request = running.synchronize(app, regions).await.expect("it is accepted");
    running.finished(&request).await
}

/// Synchronizes an image, which must be available after the first attempt, without warnings.
async fn synchronized(running: &Running, app: &str, regions: &[&str]) -> Vec<RegionSynchronization> {
    let done = finished(running, app, regions).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    for region in &done.regions {
        assert_eq!((region.attempt, region.warnings.len()), (1, 0), "{region:?}");
    }
    done.regions
}

/// Synchronizes an image to a region, which must fail permanently. Returns the error message.
async fn refused(running: &Running, app: &str, region: &str) -> String {
    let done = finished(running, app, &[region]).await;
    let [region] = &done.regions[..] else { panic!("{done:?}") };
    assert_eq!((region.state(), region.attempt), (RegionState::Failed, 1), "trying again is of no use: {region:?}");
    region.error.as_ref().expect("a reason").message.clone()
}
