//! What becomes of an image that is visible, and whose copy was canceled before that was reported.

use std::sync::Arc;

use crate::{
    db::Db,
    domain::{ImageId, RegionId, RegionStatus, with_causes},
    region::{Stage, Store},
};

/// Takes the image back from a region whose report came too late, if the copy was canceled.
pub async fn retract_canceled(state: Db, image: ImageId, region: RegionId, store: Arc<dyn Store>, stage: Stage) {
    // A report may be late because it was written already and only its answer was lost.
    let canceled = match state.image_get(&image).await {
        Ok((_, replicas)) => {
            replicas.iter().any(|(of, replica)| *of == region && replica.status() == RegionStatus::Canceled)
        }
        Err(error) => {
            tracing::debug!(error = with_causes(&error), %image, %region, "failed to find out whether the copy was canceled");
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
            tracing::warn!(error = with_causes(&error), %image, %region, "failed to withdraw a canceled image");
        }
    }
}
