//! The registered images.

use std::collections::HashMap;

use domain::{Image, ImageId, RegionId, RegionStatus, Replica};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait as _, QueryFilter, QueryOrder,
    QuerySelect, SqlErr,
};
use tracing::instrument;

use super::{
    Db, Error, ImageFilter, NameConflictPolicy, Result,
    blob_records::forget_written,
    connections::{Reader, Transaction},
    entity, image_generation, image_reference, region_store,
};

/// An image and its replicas.
pub type WithReplicas = (Image, Vec<(RegionId, Replica)>);

/// A page of a list.
#[derive(Debug, Clone)]
pub struct ImagePage {
    /// The images and their replicas, in the order of their ids.
    pub images: Vec<WithReplicas>,
    /// Whether further images follow.
    pub more: bool,
    /// Number of images on all pages, if it was requested.
    pub total: Option<u64>,
}

/// A range of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    /// Number of items before the range.
    pub skip: u64,
    /// Maximum number of items in the range.
    pub limit: u64,
}

impl Db {
    /// Registers an image. Returns [`Error::NameTaken`] if another image with other content has its name.
    pub async fn image_add(&self, image: &Image) -> Result<()> {
        self.image_add_as(image, NameConflictPolicy::Reject).await
    }

    /// Registers an image. `policy` applies if another image with other content has its name.
    #[instrument(name = "INSERT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "INSERT", db.collection.name = "image"))]
    pub async fn image_add_as(&self, image: &Image, policy: NameConflictPolicy<'_>) -> Result<()> {
        self.0.connections.transaction(async |txn| insert(&txn, image, policy).await).await?;
        self.0.signals.notify_changed();
        Ok(())
    }

    /// Returns an image and its replicas.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_get(&self, id: &ImageId) -> Result<(Image, Vec<(RegionId, Replica)>)> {
        let get = async |reader: Reader| {
            let reader = &reader;
            let row = entity::image::Entity::find_by_id(id.clone()).one(reader).await?;
            let image = row.ok_or_else(|| Error::ImageNotFound(id.clone()))?.into();
            let of_image = entity::replica::Column::ImageId.eq(id.as_str());
            let replicas = entity::replica::Entity::find().filter(of_image).all(reader).await?;
            Ok((image, with_regions(replicas)?))
        };
        self.0.connections.read(get).await
    }

    /// Lists a range of the images whose ids follow `after`. With `count`, counts the images on all pages.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_list(
        &self,
        filter: &ImageFilter,
        after: Option<&ImageId>,
        range: PageRange,
        count: bool,
    ) -> Result<ImagePage> {
        use entity::{image, replica};
        let list = async |reader: Reader| {
            let reader = &reader;
            let matching = image::Entity::find().filter(filter.condition());
            let total = if count { Some(matching.clone().count(reader).await?) } else { None };
            let mut query = matching.order_by_asc(image::Column::Id).offset(range.skip).limit(range.limit + 1);
            if let Some(after) = after {
                query = query.filter(image::Column::Id.gt(after.as_str()));
            }
            let mut rows = query.all(reader).await?;
            let more = rows.len() as u64 > range.limit;
            rows.truncate(usize::try_from(range.limit).unwrap_or(usize::MAX));
            let ids = rows.iter().map(|row| row.id.0.as_str());
            let replicas = replica::Entity::find().filter(replica::Column::ImageId.is_in(ids)).all(reader).await?;
            Ok(ImagePage { images: with_replicas(rows, replicas)?, more, total })
        };
        self.0.connections.read(list).await
    }

    /// Lists a range of the images, newest first, and counts the images on all pages.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_versions(&self, filter: &ImageFilter, range: PageRange) -> Result<(Vec<Image>, u64)> {
        use entity::image::{Column, Entity};
        let list = async |reader: Reader| {
            let reader = &reader;
            let matching = Entity::find().filter(filter.condition());
            let total = matching.clone().count(reader).await?;
            let newest = matching.order_by_desc(Column::CreatedAt).order_by_desc(Column::Id);
            Ok((newest.offset(range.skip).limit(range.limit).all(reader).await?, total))
        };
        let (rows, total) = self.0.connections.read(list).await?;
        Ok((rows.into_iter().map(Image::from).collect(), total))
    }

    /// Returns up to `limit` images other than `except` that a region has. Prefers those that were copied last.
    pub async fn images_in(&self, region: &RegionId, except: &ImageId, limit: u64) -> Result<Vec<Image>> {
        use entity::{image, replica};
        let find = async |reader: Reader| {
            let reader = &reader;
            let replicas = replica::Entity::find()
                .filter(replica::Column::RegionId.eq(region.as_str()))
                .filter(replica::Column::State.eq(RegionStatus::Available.as_str()))
                .filter(replica::Column::ImageId.ne(except.as_str()))
                .order_by_desc(replica::Column::FinishedAt)
                .limit(limit)
                .all(reader)
                .await?;
            let ids = replicas.iter().map(|row| row.image_id.0.as_str());
            Ok(image::Entity::find().filter(image::Column::Id.is_in(ids)).all(reader).await?)
        };
        Ok(self.0.connections.read(find).await?.into_iter().map(Image::from).collect())
    }

    /// Removes an image and its replicas from the database. The stores keep the image's content. Returns
    /// [`Error::ImageInUse`] while a copy of the image is in flight.
    #[instrument(name = "DELETE image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "DELETE", db.collection.name = "image"))]
    pub async fn image_remove(&self, id: &ImageId) -> Result<()> {
        // Boxed, because the rows that it reads make the future large.
        Box::pin(self.0.connections.transaction(async |txn| remove(&txn, id).await)).await
    }
}

async fn insert(txn: &Transaction, image: &Image, policy: NameConflictPolicy<'_>) -> Result<()> {
    if let NameConflictPolicy::Supersede(_) = policy {
        image_generation::advance(txn).await?;
    }
    let row = entity::image::Model::from(image).into_active_model();
    if let Err(error) = row.insert(txn).await {
        return Err(match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => Error::ImageExists(image.id.clone()),
            _ => error.into(),
        });
    }
    image_reference::claim(txn, image, policy).await
}

async fn remove(txn: &Transaction, id: &ImageId) -> Result<()> {
    image_generation::advance(txn).await?;
    // Under this lock, no call for the image is accepted, and all earlier calls are committed. The image's replicas can
    // therefore be read.
    let row = entity::image::Entity::find_by_id(id.clone()).lock_exclusive().one(txn).await?;
    let image = Image::from(row.ok_or_else(|| Error::ImageNotFound(id.clone()))?);
    cancel_suspended(txn, id).await?;
    image_reference::release(txn, &image).await?;
    forget_written(txn, id, None).await?;
    let of_image = entity::replica::Column::ImageId.eq(id.as_str());
    entity::replica::Entity::delete_many().filter(of_image).exec(txn).await?;
    // The record of an unfinished copy stays until maintenance has aborted the copy.
    entity::ecs_copy::Entity::delete_many()
        .filter(entity::ecs_copy::Column::ImageId.eq(id.as_str()))
        .filter(entity::ecs_copy::Column::Finished.eq(true))
        .exec(txn)
        .await?;
    entity::image::Entity::delete_by_id(id.clone()).exec(txn).await?;
    Ok(())
}

/// Cancels the suspended copies of an image. Returns [`Error::ImageInUse`] if another copy is pending or running.
async fn cancel_suspended(txn: &Transaction, image: &ImageId) -> Result<()> {
    let of_image = entity::replica::Column::ImageId.eq(image.as_str());
    let replicas = with_regions(entity::replica::Entity::find().filter(of_image).all(txn).await?)?;
    let open = replicas.into_iter().filter(|(_, replica)| replica.outcome().is_none());
    let (suspended, in_flight): (Vec<_>, Vec<_>) = open.partition(|(_, replica)| replica.is_suspended());
    let regions: Vec<RegionId> = in_flight.into_iter().map(|(region, _)| region).collect();
    if !regions.is_empty() {
        return Err(Error::ImageInUse { image: image.clone(), regions });
    }
    let suspended = suspended.into_iter().map(|(region, _)| region).collect();
    region_store::cancel_suspended(txn, image, suspended).await
}

/// Joins images and their replicas in linear time.
fn with_replicas(
    images: Vec<entity::image::Model>,
    replicas: Vec<entity::replica::Model>,
) -> Result<Vec<WithReplicas>> {
    let mut by_image: HashMap<ImageId, Vec<entity::replica::Model>> = HashMap::with_capacity(images.len());
    for replica in replicas {
        by_image.entry(replica.image_id.0.clone()).or_default().push(replica);
    }
    let join = |row: entity::image::Model| {
        let replicas = by_image.remove(&row.id.0).unwrap_or_default();
        Ok((row.into(), with_regions(replicas)?))
    };
    images.into_iter().map(join).collect()
}

fn with_regions(rows: Vec<entity::replica::Model>) -> Result<Vec<(RegionId, Replica)>> {
    rows.into_iter().map(|row| Ok((row.region_id.0.clone(), row.replica()?))).collect()
}
