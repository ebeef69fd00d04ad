//! What is optional never decides over what is necessary: an image arrives whatever is wrong with what is attached to it, and what it
//! arrived without is told.

mod attached;
mod incomplete;
mod referrers;

use appferry::contract::v1::{Intactness, RegionState, RegionSynchronization, VerifyImageRequest, VerifyImageResponse};

use crate::harness::{
    shelf::Shelf,
    site::{HOME, Running, Site, container},
};

/// A region whose store is a registry, and one that is a directory.
const REGISTRY: &str = "cn-beijing";
const DIRECTORY: &str = "cn-shanghai";

/// A service between two registries.
async fn between(source: String, target: &Shelf) -> Running {
    Site::new().with(HOME, source, "").with(REGISTRY, target.store(), "").start().await
}

async fn register(running: &Running, home: std::net::SocketAddr, id: &str) {
    running.images().await.add_image(container(id, &format!("{home}/apps/a:{id}"))).await.expect("it is registered");
}

/// Synchronizes an image to one region, and returns how that ended.
async fn ended(running: &Running, id: &str, region: &str) -> RegionSynchronization {
    let request = running.synchronize(id, &[region]).await.expect("it is accepted");
    running.finished(&request).await.regions.pop().expect("a region")
}

/// The same, if the image has arrived.
async fn arrived(running: &Running, id: &str, region: &str) -> RegionSynchronization {
    let ended = ended(running, id, region).await;
    assert_eq!(ended.state(), RegionState::Available, "{ended:?}");
    assert_eq!(
        ended.bytes_total,
        ended.bytes_copied + ended.bytes_skipped,
        "what does not come is not counted: {ended:?}"
    );
    ended
}

async fn verify(running: &Running, id: &str, region: &str) -> VerifyImageResponse {
    let request = VerifyImageRequest { image_id: id.into(), region_ids: vec![region.into()] };
    let mut stream = running.images().await.verify_image(request).await.expect("it is verified").into_inner();
    stream.message().await.expect("an answer").expect("a region")
}

async fn intact(running: &Running, id: &str, region: &str) -> VerifyImageResponse {
    let found = verify(running, id, region).await;
    assert_eq!(found.intactness(), Intactness::Intact, "{found:?}");
    found
}

/// Whether one of the warnings has both texts.
fn warns(warnings: &[String], of: &str, why: &str) -> bool {
    warnings.iter().any(|warning| warning.contains(of) && warning.contains(why))
}

fn digest(descriptor: &serde_json::Value) -> &str {
    descriptor["digest"].as_str().expect("a digest")
}
