//! Copies that nobody wants any more.

use std::time::Duration;

use crate::{
    db::{self, Db},
    domain::{EcsCopy, EcsImageId, EcsStatus, ImageId, RegionId, with_causes},
    region::{Ecs, ecs},
};

/// How long it is waited for the provider to take back a copy that was canceled.
const GIVE_UP: Duration = Duration::from_secs(30);

/// What went wrong, whoever's it is.
type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Gives up what ECS makes of an image in a region, if nobody wants it any more.
pub async fn give_up(state: &Db, ecs: &Ecs, image: &ImageId, region: &RegionId) {
    let given_up = async {
        let Some(copy) = state.ecs_copy_abandon(image, region).await? else { return Ok(()) };
        let Some(discarded) = copy.discarded else { return forget(state, ecs, image, region, &copy).await };
        ecs.cancel(region, &discarded).await?;
        let shown = ecs.image(region, &discarded).await?;
        if shown.is_none_or(|shown| shown.status != EcsStatus::Creating) {
            tracing::info!(%image, %region, %discarded, "the copy was given up");
            state.ecs_copy_clear_discarded(image, region, &discarded).await?;
        }
        Ok::<(), Problem>(())
    };
    let given_up = tokio::time::timeout(GIVE_UP, given_up).await;
    if let Err(error) = given_up.unwrap_or_else(|_| Err("it took too long".into())) {
        tracing::warn!(error = with_causes(&*error), %image, %region, "a copy can't be given up for now");
    }
}

/// Forgets a copy that nobody wants and of which no image is known. Whoever asked ECS for it may have died before it had an answer:
/// what has the copy's name and was made for it is given up, until that can't come any more.
async fn forget(state: &Db, ecs: &Ecs, image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Result<(), Problem> {
    let (image, _) = match state.image_get(image).await {
        Err(db::Error::ImageNotFound(_)) => return Ok(state.ecs_copy_forget(image, region).await?),
        known => known?,
    };
    let source = ecs.image(&image.home, &image.source.0.parse::<EcsImageId>()?).await?;
    let named = match source {
        Some(source) => ecs.named(region, &source.name).await?,
        None => Vec::new(),
    };
    for made in named {
        if made.status == EcsStatus::Creating && made.has_tags(&ecs::tags(&image)) {
            ecs.cancel(region, &made.id).await?;
        }
    }
    if copy.since.after(ecs.settle()) < ecs.now() {
        state.ecs_copy_forget(&image.id, region).await?;
    }
    Ok(())
}
