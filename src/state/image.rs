//! The registered images.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, SqlErr,
};
use tracing::instrument;

use super::{Error, Result, State, entity};
use crate::domain::{Image, ImageId, RegionId, RegionStatus, Replica};

/// A page of images, each with its replicas.
#[derive(Debug, Clone)]
pub struct ImagePage {
    /// The images, in the order of their ids.
    pub images: Vec<(Image, Vec<(RegionId, Replica)>)>,
    /// Whether there are more after them.
    pub more: bool,
}

impl State {
    /// Registers an image.
    #[instrument(name = "INSERT image", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn image_add(&self, image: &Image) -> Result<()> {
        let txn = self.write().await?;
        let row = entity::image::Model::from(image).into_active_model();
        if let Err(error) = row.insert(&txn).await {
            return Err(match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(_)) => Error::ImageExists(image.id.clone()),
                _ => error.into(),
            });
        }
        Ok(txn.commit().await?)
    }

    /// An image and its replicas.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn image_get(&self, id: &ImageId) -> Result<(Image, Vec<(RegionId, Replica)>)> {
        let db = &self.0.read;
        let row = entity::image::Entity::find_by_id(id.as_str()).one(db).await?;
        let image = row.ok_or_else(|| Error::ImageNotFound(id.clone()))?.try_into()?;
        let replicas =
            entity::replica::Entity::find().filter(entity::replica::Column::ImageId.eq(id.as_str())).all(db).await?;
        Ok((image, with_regions(replicas)?))
    }

    /// The images whose ids come after `after`, `limit` at most.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn image_list(&self, after: Option<&ImageId>, limit: u64) -> Result<ImagePage> {
        use entity::{image, replica};
        let db = &self.0.read;
        let mut query = image::Entity::find().order_by_asc(image::Column::Id).limit(limit + 1);
        if let Some(after) = after {
            query = query.filter(image::Column::Id.gt(after.as_str()));
        }
        let mut rows = query.all(db).await?;
        let more = rows.len() as u64 > limit;
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let ids = rows.iter().map(|row| row.id.as_str());
        let mut replicas = replica::Entity::find().filter(replica::Column::ImageId.is_in(ids)).all(db).await?;
        let images = rows
            .into_iter()
            .map(|row| {
                let own = replicas.extract_if(.., |r| r.image_id == row.id).collect();
                Ok((row.try_into()?, with_regions(own)?))
            })
            .collect::<Result<_>>()?;
        Ok(ImagePage { images, more })
    }

    /// Other images that a region has, those that it got last first, `limit` at most.
    pub async fn images_in(&self, region: &RegionId, but: &ImageId, limit: u64) -> Result<Vec<Image>> {
        use entity::{image, replica};
        let db = &self.0.read;
        let replicas = replica::Entity::find()
            .filter(replica::Column::RegionId.eq(region.as_str()))
            .filter(replica::Column::State.eq(RegionStatus::Available.as_str()))
            .filter(replica::Column::ImageId.ne(but.as_str()))
            .order_by_desc(replica::Column::FinishedAt)
            .limit(limit)
            .all(db)
            .await?;
        let ids = replicas.iter().map(|row| row.image_id.as_str());
        let images = image::Entity::find().filter(image::Column::Id.is_in(ids)).all(db).await?;
        images.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    /// Forgets an image and where it is, unless a copy of it is in flight. The bytes stay where they are.
    #[instrument(name = "DELETE image", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn image_remove(&self, id: &ImageId) -> Result<()> {
        let txn = self.write().await?;
        let replicas =
            entity::replica::Entity::find().filter(entity::replica::Column::ImageId.eq(id.as_str())).all(&txn).await?;
        let regions: Vec<_> = with_regions(replicas)?
            .into_iter()
            .filter(|(_, replica)| replica.outcome().is_none())
            .map(|(region, _)| region)
            .collect();
        if !regions.is_empty() {
            return Err(Error::ImageInUse { image: id.clone(), regions });
        }
        let removed = entity::image::Entity::delete_by_id(id.as_str()).exec(&txn).await?;
        if removed.rows_affected == 0 {
            return Err(Error::ImageNotFound(id.clone()));
        }
        entity::replica::Entity::delete_many()
            .filter(entity::replica::Column::ImageId.eq(id.as_str()))
            .exec(&txn)
            .await?;
        Ok(txn.commit().await?)
    }
}

fn with_regions(rows: Vec<entity::replica::Model>) -> Result<Vec<(RegionId, Replica)>> {
    rows.into_iter().map(|row| Ok((region_of(&row)?, row.replica()?))).collect()
}

pub(super) fn region_of(row: &entity::replica::Model) -> Result<RegionId> {
    Ok(entity::parse("replica.region_id", &row.region_id)?)
}
