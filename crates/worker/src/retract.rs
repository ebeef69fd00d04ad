//! Withdraws an image that a copy published although it had been canceled before its report.

use std::sync::Arc;

use db::Db;
use domain::{ImageId, RegionId, RegionStatus, with_causes};
use storage::{Stage, Store};

/// Withdraws the image from a region whose report was stale, if the copy was canceled.
pub async fn retract_canceled(state: Db, image: ImageId, region: RegionId, store: Arc<dyn Store>, stage: Stage) {
    // A report may also be stale because it was already committed and only the response was lost.
    let canceled = match state.image_get(&image).await {
        Ok((_, replicas)) => {
            replicas.iter().any(|(of, replica)| *of == region && replica.status() == RegionStatus::Canceled)
        }
        Err(error) => {
            tracing::debug!(error = with_causes(&error), %image, %region, "failed to read whether the copy was canceled; leaving the image visible");
            return;
        }
    };
    if !canceled {
        return;
    }
    match store.retract(&stage).await {
        Ok(true) => tracing::info!(%image, %region, "withdrew the image: its copy was canceled"),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(error = with_causes(&error), %image, %region, "failed to withdraw a canceled image; it stays visible");
        }
    }
}
