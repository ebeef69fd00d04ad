//! Optional content never fails a copy: an image arrives even if its attachments cannot be copied, and a warning lists
//! what is missing.

mod attached;
mod incomplete;
mod referrers;

use appferry::contract::v1::{Intactness, RegionState, RegionSynchronization, VerifyImageRequest, VerifyImageResponse};

use crate::harness::{
    scripted_registry::ScriptedRegistry,
    site::{HOME, Running, Site, container},
};

/// A region whose store is a registry, and one whose store is a directory.
const REGISTRY: &str = "cn-beijing";
const DIRECTORY: &str = "cn-shanghai";

/// Starts a service between two registries.
async fn between(source: String, target: &ScriptedRegistry) -> Running {
    Site::new().with(HOME, source, "").with(REGISTRY, target.store(), "").start().await
}

async fn register(running: &Running, home: std::net::SocketAddr, id: &str) {
    running.images().await.add_image(container(id, &format!("{home}/apps/a:{id}"))).await.expect("it is registered");
}

/// Synchronizes an image to one region, and returns the outcome.
async fn ended(running: &Running, id: &str, region: &str) -> RegionSynchronization {
    let request = running.synchronize(id, &[region]).await.expect("it is accepted");
    running.finished(&request).await.regions.pop().expect("a region")
}

/// Synchronizes an image to one region, which must succeed.
async fn arrived(running: &Running, id: &str, region: &str) -> RegionSynchronization {
    let ended = ended(running, id, region).await;
    assert_eq!(ended.state(), RegionState::Available, "{ended:?}");
    assert_eq!(
        ended.bytes_total,
        ended.bytes_copied + ended.bytes_skipped,
        "a skipped layer is not counted: {ended:?}"
    );
    ended
}

async fn verify(running: &Running, id: &str, region: &str) -> VerifyImageResponse {
    let request = VerifyImageRequest { image_id: id.into(), region_ids: vec![region.into()] };
    let mut stream = running.images().await.verify_image(request).await.expect("it is verified").into_inner();
    stream.message().await.expect("an answer").expect("a region")
}

async fn intact(running: &Running, id: &str, region: &str) -> VerifyImageResponse {
    let result = verify(running, id, region).await;
    assert_eq!(result.intactness(), Intactness::Intact, "{result:?}");
    result
}

/// Returns whether one of the warnings contains both texts.
fn warns(warnings: &[String], of: &str, why: &str) -> bool {
    warnings.iter().any(|warning| warning.contains(of) && warning.contains(why))
}

fn digest(descriptor: &serde_json::Value) -> &str {
    descriptor["digest"].as_str().expect("a digest")
}
