//! Access to stores: expiring credentials, few permissions, proxies, and the errors when access fails.

mod buckets;
mod egress;
mod helper;
mod remedies;
mod rotation;

use appferry::contract::v1::{RegionState, Synchronization, SynchronizationState};

use crate::harness::site::Running;

/// Synchronizes an image to regions, which must succeed at the first attempt.
async fn synchronized(running: &Running, app: &str, regions: &[&str]) {
    let request = running.synchronize(app, regions).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions.iter().all(|region| region.attempt == 1), "{done:?}");
}

/// Returns the message of a region whose synchronization failed.
fn failure_message(done: &Synchronization, region: &str) -> String {
    let region = done.regions.iter().find(|found| found.region_id == region).expect("the region");
    assert_eq!(region.state(), RegionState::Failed, "{done:?}");
    region.error.as_ref().expect("a reason").message.clone()
}
