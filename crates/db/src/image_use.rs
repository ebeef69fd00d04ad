//! How the database uses the images in a region's store.

use std::collections::BTreeMap;

use domain::{ImageId, ImageName, ImageUse, RegionId, RegionStatus};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::{
    Db, Result,
    connections::Reader,
    entity::{self, replica::Text},
};

/// Maximum number of images in one query.
const BATCH: usize = 500;

impl Db {
    /// Returns how the database uses some images in a region's store. Images without a use are left out: those that are
    /// not registered, and those whose copies failed or were canceled.
    pub async fn image_uses(&self, region: &RegionId, names: &[ImageName]) -> Result<BTreeMap<ImageName, ImageUse>> {
        let mut uses = BTreeMap::new();
        for names in names.chunks(BATCH) {
            uses.extend(self.0.connections.read(async |reader| image_uses(&reader, region, names).await).await?);
        }
        Ok(uses)
    }
}

async fn image_uses(reader: &Reader, region: &RegionId, names: &[ImageName]) -> Result<BTreeMap<ImageName, ImageUse>> {
    use entity::{image, replica};
    let mut uses = BTreeMap::new();
    let names = || names.iter().map(|name| name.0.as_str());
    // In its home region an image has its source's name, in other regions its own id.
    let sources: Vec<String> = image::Entity::find()
        .select_only()
        .column(image::Column::Source)
        .filter(image::Column::HomeRegion.eq(region.as_str()))
        .filter(image::Column::Source.is_in(names()))
        .into_tuple()
        .all(reader)
        .await?;
    uses.extend(sources.into_iter().map(|source| (ImageName(source), ImageUse::Kept)));
    let replicas: Vec<(Text<ImageId>, Text<RegionStatus>)> = replica::Entity::find()
        .select_only()
        .columns([replica::Column::ImageId, replica::Column::State])
        .filter(replica::Column::RegionId.eq(region.as_str()))
        .filter(replica::Column::ImageId.is_in(names()))
        .into_tuple()
        .all(reader)
        .await?;
    for (id, state) in replicas {
        let image_use = match state.0 {
            RegionStatus::Pending | RegionStatus::Copying => ImageUse::InFlight,
            RegionStatus::Available | RegionStatus::Superseded => ImageUse::Kept,
            RegionStatus::Failed | RegionStatus::Canceled => continue,
        };
        let name = ImageName(id.0.to_string());
        let image_use = uses.get(&name).map_or(image_use, |other| image_use.max(*other));
        uses.insert(name, image_use);
    }
    Ok(uses)
}
