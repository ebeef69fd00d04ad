//! Aborts ECS copies that no replica waits for any more.

use std::time::Duration;

use db::{self, Db};
use domain::{EcsCopy, EcsImageId, EcsStatus, ImageId, RegionId, with_causes};
use storage::{Ecs, ecs};

/// The time limit for aborting one copy.
const ABORT_TIMEOUT: Duration = Duration::from_secs(30);

/// An error of the database or of ECS.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Aborts the ECS copy of an image to a region, if no replica waits for it.
pub async fn abandon(state: &Db, ecs: &Ecs, image: &ImageId, region: &RegionId) {
    let abandoned = async {
        let Some(copy) = state.ecs_copy_abandon(image, region).await? else { return Ok(()) };
        let Some(discarded) = copy.discarded else { return forget(state, ecs, image, region, &copy).await };
        ecs.cancel(region, &discarded).await?;
        let shown = ecs.image(region, &discarded).await?;
        if shown.is_none_or(|shown| shown.status != EcsStatus::Creating) {
            tracing::info!(%image, %region, %discarded, "aborted an ECS copy that is no longer needed");
            state.ecs_copy_clear_discarded(image, region, &discarded).await?;
        }
        Ok::<(), BoxError>(())
    };
    let result = tokio::time::timeout(ABORT_TIMEOUT, abandoned).await;
    if let Err(error) = result.unwrap_or_else(|_| Err("ECS did not respond in time".into())) {
        tracing::warn!(error = with_causes(&*error), %image, %region, "failed to abort an ECS copy; will retry");
    }
}

/// Deletes the record of a copy without an image id. The worker that requested the copy may have died before it
/// recorded the response. Images of that name that were made for the copy are therefore aborted until no more can
/// appear.
async fn forget(state: &Db, ecs: &Ecs, image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Result<(), BoxError> {
    let (image, _) = match state.image_get(image).await {
        Err(db::Error::ImageNotFound(_)) => return Ok(state.ecs_copy_forget(image, region).await?),
        result => result?,
    };
    let source = ecs.image(&image.home, &image.source.0.parse::<EcsImageId>()?).await?;
    let candidates = match source {
        Some(source) => ecs.named(region, &source.name).await?,
        None => Vec::new(),
    };
    for candidate in candidates {
        if candidate.status == EcsStatus::Creating && candidate.has_tags(&ecs::tags(&image)) {
            ecs.cancel(region, &candidate.id).await?;
        }
    }
    if copy.is_settled(ecs.now(), ecs.settle()) {
        state.ecs_copy_forget(&image.id, region).await?;
    }
    Ok(())
}
