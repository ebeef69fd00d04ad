//! The table `ecs_copy`: copies by ECS.

use domain::{EcsCopy, EcsImageId, ImageId, RegionId, Timestamp};
use sea_orm::entity::prelude::*;

use super::columns::{self, Number};

/// A value in a text column of this table.
type Text<T> = columns::Text<Entity, T>;

/// The copy of an image to a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "ecs_copy")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub image_id: Text<ImageId>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<RegionId>,
    pub generation: Number<u64>,
    pub since: Number<Timestamp>,
    pub ecs_image_id: Option<Text<EcsImageId>>,
    pub finished: bool,
    /// Image of an earlier generation that is to be aborted.
    pub discarded: Option<Text<EcsImageId>>,
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
            image_id: image.clone().into(),
            region_id: region.clone().into(),
            generation: copy.generation.into(),
            since: copy.since.into(),
            ecs_image_id: copy.image.clone().map(Text::from),
            finished: copy.finished,
            discarded: copy.discarded.clone().map(Text::from),
        }
    }

    /// Returns the image and the region of the copy.
    pub fn key(&self) -> (ImageId, RegionId) {
        (self.image_id.0.clone(), self.region_id.0.clone())
    }

    /// Returns the row as a domain value.
    pub fn copy(&self) -> EcsCopy {
        EcsCopy {
            generation: self.generation.0,
            since: self.since.0,
            image: self.ecs_image_id.as_ref().map(|id| id.0.clone()),
            finished: self.finished,
            discarded: self.discarded.as_ref().map(|id| id.0.clone()),
        }
    }
}
