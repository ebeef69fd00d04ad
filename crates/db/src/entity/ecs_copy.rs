//! The table `ecs_copy`: copies by ECS.

use domain::{EcsCopy, EcsImageId, ImageId, RegionId, Timestamp};
use sea_orm::entity::prelude::*;

use super::{parse, signed, unsigned};

/// The copy of an image to a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "ecs_copy")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    pub generation: i64,
    /// Milliseconds since the Unix epoch.
    pub since: i64,
    pub ecs_image_id: Option<String>,
    pub finished: bool,
    /// Image of an earlier generation that is to be aborted.
    pub discarded: Option<String>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// Creates the row of a copy.
    #[must_use]
    pub fn from_copy(image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Self {
        Self {
            image_id: image.to_string(),
            region_id: region.to_string(),
            generation: signed(copy.generation),
            since: copy.since.as_millis(),
            ecs_image_id: copy.image.as_ref().map(EcsImageId::to_string),
            finished: copy.finished,
            discarded: copy.discarded.as_ref().map(EcsImageId::to_string),
        }
    }

    /// Parses the image and the region.
    pub fn key(&self) -> Result<(ImageId, RegionId), DbErr> {
        Ok((parse("ecs_copy.image_id", &self.image_id)?, parse("ecs_copy.region_id", &self.region_id)?))
    }

    /// Parses the copy.
    pub fn copy(&self) -> Result<EcsCopy, DbErr> {
        let id = |column, text: &Option<String>| text.as_deref().map(|text| parse(column, text)).transpose();
        Ok(EcsCopy {
            generation: unsigned(self.generation),
            since: Timestamp::from_millis(self.since),
            image: id("ecs_copy.ecs_image_id", &self.ecs_image_id)?,
            finished: self.finished,
            discarded: id("ecs_copy.discarded", &self.discarded)?,
        })
    }
}
