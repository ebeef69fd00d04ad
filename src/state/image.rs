//! The registered images.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, DatabaseTransaction, EntityTrait, IntoActiveModel, PaginatorTrait as _,
    QueryFilter, QueryOrder, QuerySelect, SqlErr,
    sea_query::{Alias, Expr, ExprTrait as _, Query, SimpleExpr},
};
use tracing::instrument;

use super::{Error, Result, State, entity, gate::Name, group::retrying, sql::Sql};
use crate::domain::{Image, ImageId, ImageKind, RegionId, RegionStatus, Replica};

/// A page of images, each with its replicas.
#[derive(Debug, Clone)]
pub struct ImagePage {
    /// The images, in the order of their ids.
    pub images: Vec<(Image, Vec<(RegionId, Replica)>)>,
    /// Whether there are more after them.
    pub more: bool,
    /// How many there are on all pages together, if that was asked for.
    pub total: Option<u64>,
}

/// Which images.
#[derive(Debug, Clone, Default)]
pub struct ImageFilter {
    /// Those of these ids; all if there are none.
    pub ids: Vec<ImageId>,
    /// Those of these names; all if there are none.
    pub names: Vec<String>,
    /// Those of this kind.
    pub kind: Option<ImageKind>,
    /// Of every name and kind the one that was registered last.
    pub latest_only: bool,
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// How many are left out before it.
    pub skip: u64,
    /// The most that it has.
    pub limit: u64,
}

impl ImageFilter {
    fn condition(&self) -> Condition {
        use entity::image::Column;
        let ids = self.ids.iter().map(ImageId::as_str);
        let one_of = |column: Column, any: bool, all: Vec<&str>| any.then(|| column.is_in(all));
        Condition::all()
            .add_option(one_of(Column::Id, !self.ids.is_empty(), ids.collect()))
            .add_option(one_of(Column::Name, !self.names.is_empty(), self.names.iter().map(String::as_str).collect()))
            .add_option(self.kind.map(|kind| Column::Kind.eq(kind.as_str())))
            .add_option(self.latest_only.then(is_latest))
    }
}

/// That no image of the same name and kind was registered after it.
fn is_latest() -> SimpleExpr {
    use entity::image::{Column, Entity};
    let newer = Alias::new("newer");
    let [name, kind, created, id] = [Column::Name, Column::Kind, Column::CreatedAt, Column::Id]
        .map(|c| (Expr::col((newer.clone(), c)), Expr::col((Entity, c))));
    let after = Condition::any()
        .add(created.0.clone().gt(created.1.clone()))
        .add(Condition::all().add(created.0.eq(created.1)).add(id.0.gt(id.1)));
    let query = Query::select()
        .expr(Expr::val(1))
        .from_as(Entity, newer)
        .cond_where(Condition::all().add(name.0.eq(name.1)).add(kind.0.eq(kind.1)).add(after))
        .take();
    Expr::exists(query).not()
}

impl State {
    /// Registers an image.
    #[instrument(name = "INSERT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "INSERT", db.collection.name = "image"))]
    pub async fn image_add(&self, image: &Image) -> Result<()> {
        retrying(|| self.in_time(self.add_once(image))).await
    }

    async fn add_once(&self, image: &Image) -> Result<()> {
        use entity::replica;
        let txn = self.write().await?;
        let row = entity::image::Model::from(image).into_active_model();
        if let Err(error) = row.insert(&txn).await {
            return Err(match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(_)) => Error::ImageExists(image.id.clone()),
                _ => error.into(),
            });
        }
        // Replicas of an image that had the id before, left behind by a version that did not lock it: they say nothing about this one.
        let id = &image.id;
        refuse_in_flight(&txn, id).await?;
        replica::Entity::delete_many().filter(replica::Column::ImageId.eq(id.as_str())).exec(&txn).await?;
        Ok(txn.commit().await?)
    }

    /// An image and its replicas.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_get(&self, id: &ImageId) -> Result<(Image, Vec<(RegionId, Replica)>)> {
        let db = &self.0.db.read;
        let row = entity::image::Entity::find_by_id(id.as_str()).one(db).await?;
        let image = row.ok_or_else(|| Error::ImageNotFound(id.clone()))?.try_into()?;
        let replicas =
            entity::replica::Entity::find().filter(entity::replica::Column::ImageId.eq(id.as_str())).all(db).await?;
        Ok((image, with_regions(replicas)?))
    }

    /// A span of the images whose ids come after `after`.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_list(
        &self,
        filter: &ImageFilter,
        after: Option<&ImageId>,
        span: Span,
        count: bool,
    ) -> Result<ImagePage> {
        use entity::{image, replica};
        let db = &self.0.db.read;
        let matching = image::Entity::find().filter(filter.condition());
        let total = if count { Some(matching.clone().count(db).await?) } else { None };
        let mut query = matching.order_by_asc(image::Column::Id).offset(span.skip).limit(span.limit + 1);
        if let Some(after) = after {
            query = query.filter(image::Column::Id.gt(after.as_str()));
        }
        let mut rows = query.all(db).await?;
        let more = rows.len() as u64 > span.limit;
        rows.truncate(usize::try_from(span.limit).unwrap_or(usize::MAX));
        let ids = rows.iter().map(|row| row.id.as_str());
        let mut replicas = replica::Entity::find().filter(replica::Column::ImageId.is_in(ids)).all(db).await?;
        let images = rows
            .into_iter()
            .map(|row| {
                let own = replicas.extract_if(.., |r| r.image_id == row.id).collect();
                Ok((row.try_into()?, with_regions(own)?))
            })
            .collect::<Result<_>>()?;
        Ok(ImagePage { images, more, total })
    }

    /// A span of the images, those that were registered last first, and how many there are.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_versions(&self, filter: &ImageFilter, span: Span) -> Result<(Vec<Image>, u64)> {
        use entity::image::{Column, Entity};
        let db = &self.0.db.read;
        let matching = Entity::find().filter(filter.condition());
        let total = matching.clone().count(db).await?;
        let newest = matching.order_by_desc(Column::CreatedAt).order_by_desc(Column::Id);
        let rows = newest.offset(span.skip).limit(span.limit).all(db).await?;
        Ok((rows.into_iter().map(Image::try_from).collect::<std::result::Result<_, _>>()?, total))
    }

    /// Other images that a region has, those that it got last first, `limit` at most.
    pub async fn images_in(&self, region: &RegionId, but: &ImageId, limit: u64) -> Result<Vec<Image>> {
        use entity::{image, replica};
        let db = &self.0.db.read;
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
    #[instrument(name = "DELETE image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "DELETE", db.collection.name = "image"))]
    pub async fn image_remove(&self, id: &ImageId) -> Result<()> {
        retrying(|| self.in_time(self.remove_once(id))).await
    }

    async fn remove_once(&self, id: &ImageId) -> Result<()> {
        let txn = self.write().await?;
        // From here on no call is accepted for it, and those that have been are committed: only now can its replicas be judged.
        let locked: Vec<Name> = Sql::on(&txn)
            .text("SELECT i.id FROM image AS i WHERE i.id = ")
            .value(id.as_str())
            .lock("i")
            .all(&txn)
            .await?;
        if locked.is_empty() {
            return Err(Error::ImageNotFound(id.clone()));
        }
        refuse_in_flight(&txn, id).await?;
        entity::replica::Entity::delete_many()
            .filter(entity::replica::Column::ImageId.eq(id.as_str()))
            .exec(&txn)
            .await?;
        // One that is unfinished is still to be given up.
        entity::ecs_copy::Entity::delete_many()
            .filter(entity::ecs_copy::Column::ImageId.eq(id.as_str()))
            .filter(entity::ecs_copy::Column::Finished.eq(true))
            .exec(&txn)
            .await?;
        entity::image::Entity::delete_by_id(id.as_str()).exec(&txn).await?;
        Ok(txn.commit().await?)
    }
}

/// Returns an error if an image is being copied to a region, or waits for it.
async fn refuse_in_flight(txn: &DatabaseTransaction, image: &ImageId) -> Result<()> {
    let of_image = entity::replica::Column::ImageId.eq(image.as_str());
    let replicas = with_regions(entity::replica::Entity::find().filter(of_image).all(txn).await?)?;
    let open = replicas.into_iter().filter(|(_, replica)| replica.outcome().is_none());
    let regions: Vec<RegionId> = open.map(|(region, _)| region).collect();
    if regions.is_empty() { Ok(()) } else { Err(Error::ImageInUse { image: image.clone(), regions }) }
}

fn with_regions(rows: Vec<entity::replica::Model>) -> Result<Vec<(RegionId, Replica)>> {
    rows.into_iter().map(|row| Ok((region_of(&row)?, row.replica()?))).collect()
}

fn region_of(row: &entity::replica::Model) -> Result<RegionId> {
    Ok(entity::parse("replica.region_id", &row.region_id)?)
}
