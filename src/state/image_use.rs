//! What the places of images in a region's store are for.

use std::collections::BTreeMap;

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::{Result, State, database::Reader, entity};
use crate::domain::{ImageName, ImageUse, RegionId, RegionStatus};

/// How many images one statement asks about at most.
const BATCH: usize = 500;

impl State {
    /// What some places in a region's store are for. Those that no image uses are left out: of images that are not registered,
    /// and of copies that failed or were canceled.
    pub async fn image_uses(&self, region: &RegionId, names: &[ImageName]) -> Result<BTreeMap<ImageName, ImageUse>> {
        let mut uses = BTreeMap::new();
        for names in names.chunks(BATCH) {
            let found = self.0.db.read(async |db| image_uses(&db, region, names).await).await?;
            uses.extend(found);
        }
        Ok(uses)
    }
}

async fn image_uses(db: &Reader, region: &RegionId, names: &[ImageName]) -> Result<BTreeMap<ImageName, ImageUse>> {
    use entity::{image, replica};
    let mut uses = BTreeMap::new();
    let names = || names.iter().map(|name| name.0.as_str());
    // In its home region an image is known by its source, elsewhere by its id.
    let sources: Vec<String> = image::Entity::find()
        .select_only()
        .column(image::Column::Source)
        .filter(image::Column::HomeRegion.eq(region.as_str()))
        .filter(image::Column::Source.is_in(names()))
        .into_tuple()
        .all(db)
        .await?;
    uses.extend(sources.into_iter().map(|source| (ImageName(source), ImageUse::Kept)));
    let replicas: Vec<(String, String)> = replica::Entity::find()
        .select_only()
        .columns([replica::Column::ImageId, replica::Column::State])
        .filter(replica::Column::RegionId.eq(region.as_str()))
        .filter(replica::Column::ImageId.is_in(names()))
        .into_tuple()
        .all(db)
        .await?;
    for (name, state) in replicas {
        let used = match entity::parse("replica.state", &state)? {
            RegionStatus::Pending | RegionStatus::Copying => ImageUse::InFlight,
            RegionStatus::Available | RegionStatus::Superseded => ImageUse::Kept,
            RegionStatus::Failed | RegionStatus::Canceled => continue,
        };
        let name = ImageName(name);
        let used = uses.get(&name).map_or(used, |known| used.max(*known));
        uses.insert(name, used);
    }
    Ok(uses)
}
