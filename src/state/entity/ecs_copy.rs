//! The table `ecs_copy`: what is remembered of the copies that ECS makes.

use sea_orm::entity::prelude::*;

use super::{parse, signed, unsigned};
use crate::domain::{EcsCopy, EcsImageId, ImageId, RegionId, Timestamp};

/// The copy of one image into one region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "ecs_copy")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    pub generation: i64,
    pub since: i64,
    /// The image that ECS makes.
    pub ecs_image_id: Option<String>,
    pub finished: bool,
    /// An image of a generation before, which is to be given up.
    pub discarded: Option<String>,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// The row of a copy.
    #[must_use]
    pub fn of(image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Self {
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

    /// The image and the region.
    pub fn key(&self) -> Result<(ImageId, RegionId), DbErr> {
        Ok((parse("ecs_copy.image_id", &self.image_id)?, parse("ecs_copy.region_id", &self.region_id)?))
    }

    /// The copy that the row holds.
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
