//! The meaning of AVAILABLE, and the ownership of names: existing content is not reported as verified, published
//! content is not checked again, and a name of another image is kept unless the call overwrites it.

mod existing_content;
mod names;

use std::path::PathBuf;

use appferry::contract::v1::{
    GetImageRequest, Image, RegionState, RegionSynchronization, Synchronization, Verification,
};

use crate::harness::{
    images,
    registry::Registry,
    site::{HOME, Running, Site, container},
};

/// A region whose store is a registry.
const REGION: &str = "cn-beijing";

/// Returns a site whose home region and one other region are registries.
fn between(source: &Registry, target: impl Into<String>, keys: &str) -> Site {
    Site::new().with(HOME, source.store("apps"), "").with(REGION, target, keys)
}

/// Writes a layout with some layers to the site's directory.
fn layout(site: &Site, name: &str, layers: &[Vec<u8>]) -> PathBuf {
    let layout = site.directory.path().join(name);
    images::write(&layout, layers);
    layout
}

async fn register(running: &Running, id: &str, url: &str) {
    running.images().await.add_image(container(id, url)).await.expect("it is registered");
}

/// Synchronizes an image to one region, and returns the outcome.
async fn synchronized(running: &Running, app: &str, region: &str) -> RegionSynchronization {
    let request = running.synchronize(app, &[region]).await.expect("it is accepted");
    only(running.finished(&request).await)
}

fn only(mut done: Synchronization) -> RegionSynchronization {
    assert_eq!(done.regions.len(), 1);
    done.regions.pop().expect("a region")
}

fn says(region: &RegionSynchronization) -> (RegionState, Verification) {
    (region.state(), region.verification())
}

fn reason(region: &RegionSynchronization) -> &str {
    region.error.as_ref().map_or("", |error| error.message.as_str())
}

async fn image(running: &Running, id: &str) -> Image {
    let request = GetImageRequest { image_id: id.into(), ..Default::default() };
    let response = running.images().await.get_image(request).await.expect("it is known").into_inner();
    response.image.expect("an image")
}

const VERIFIED: (RegionState, Verification) = (RegionState::Available, Verification::Verified);
const TRUSTED: (RegionState, Verification) = (RegionState::Available, Verification::Trusted);
