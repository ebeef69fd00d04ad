//! The registered images.

use std::collections::HashMap;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, PaginatorTrait as _, QueryFilter,
    QueryOrder, QuerySelect, SqlErr,
    sea_query::{Alias, Expr, ExprTrait as _, Query, SimpleExpr},
};
use tracing::instrument;

use super::{
    Error, NameTaken, Result, State,
    database::{Reader, Transaction},
    entity,
    gate::Name,
    image_generation, image_reference,
    published::forget_written,
    region_store,
    sql::Sql,
};
use crate::domain::{Image, ImageId, ImageKind, RegionId, RegionStatus, Replica};

/// An image and its replicas.
pub type WithReplicas = (Image, Vec<(RegionId, Replica)>);

/// A page of images, each with its replicas.
#[derive(Debug, Clone)]
pub struct ImagePage {
    /// The images, in the order of their ids.
    pub images: Vec<WithReplicas>,
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
        let among = Condition::all()
            .add_option(one_of(Column::Name, !self.names.is_empty(), self.names.iter().map(String::as_str).collect()))
            .add_option(self.kind.map(|kind| Column::Kind.eq(kind.as_str())));
        let latest = self.latest_only.then(|| is_latest(among.clone()));
        among.add_option(one_of(Column::Id, !self.ids.is_empty(), ids.collect())).add_option(latest)
    }
}

/// That no image of the same name and kind was registered after it. The images are gone through once, by their names, whatever many there
/// are of one name; `among` says which names and kinds count.
fn is_latest(among: Condition) -> SimpleExpr {
    use entity::image::{Column, Entity};
    let (ranked, place) = (Alias::new("ranked"), Alias::new("place"));
    let newest_first = "ROW_NUMBER() OVER (PARTITION BY name, kind ORDER BY created_at DESC, id DESC)";
    let ranking = Query::select()
        .column(Column::Id)
        .expr_as(Expr::cust(newest_first), place.clone())
        .from(Entity)
        .cond_where(among)
        .take();
    let first = Query::select()
        .column((ranked.clone(), Column::Id))
        .from_subquery(ranking, ranked.clone())
        .and_where(Expr::col((ranked, place)).eq(1))
        .take();
    Expr::col((Entity, Column::Id)).in_subquery(first)
}

impl State {
    /// Registers an image, unless another one has its name and another content.
    pub async fn image_add(&self, image: &Image) -> Result<()> {
        self.image_add_as(image, NameTaken::Refuse).await
    }

    /// Registers an image; `taken` says what becomes of another one that has its name and another content.
    #[instrument(name = "INSERT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "INSERT", db.collection.name = "image"))]
    pub async fn image_add_as(&self, image: &Image, taken: NameTaken<'_>) -> Result<()> {
        self.0.db.transaction(async |txn| insert(&txn, image, taken).await).await?;
        self.0.signals.changed();
        Ok(())
    }

    /// An image and its replicas.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_get(&self, id: &ImageId) -> Result<(Image, Vec<(RegionId, Replica)>)> {
        let get = async |db: Reader| {
            let db = &db;
            let row = entity::image::Entity::find_by_id(id.as_str()).one(db).await?;
            let image = row.ok_or_else(|| Error::ImageNotFound(id.clone()))?.try_into()?;
            let of_image = entity::replica::Column::ImageId.eq(id.as_str());
            let replicas = entity::replica::Entity::find().filter(of_image).all(db).await?;
            Ok((image, with_regions(replicas)?))
        };
        self.0.db.read(get).await
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
        let list = async |db: Reader| {
            let db = &db;
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
            let replicas = replica::Entity::find().filter(replica::Column::ImageId.is_in(ids)).all(db).await?;
            Ok(ImagePage { images: with_replicas(rows, replicas)?, more, total })
        };
        self.0.db.read(list).await
    }

    /// A span of the images, those that were registered last first, and how many there are.
    #[instrument(name = "SELECT image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "image"))]
    pub async fn image_versions(&self, filter: &ImageFilter, span: Span) -> Result<(Vec<Image>, u64)> {
        use entity::image::{Column, Entity};
        let list = async |db: Reader| {
            let db = &db;
            let matching = Entity::find().filter(filter.condition());
            let total = matching.clone().count(db).await?;
            let newest = matching.order_by_desc(Column::CreatedAt).order_by_desc(Column::Id);
            Ok((newest.offset(span.skip).limit(span.limit).all(db).await?, total))
        };
        let (rows, total) = self.0.db.read(list).await?;
        Ok((rows.into_iter().map(Image::try_from).collect::<std::result::Result<_, _>>()?, total))
    }

    /// Other images that a region has, those that it got last first, `limit` at most.
    pub async fn images_in(&self, region: &RegionId, but: &ImageId, limit: u64) -> Result<Vec<Image>> {
        use entity::{image, replica};
        let find = async |db: Reader| {
            let db = &db;
            let replicas = replica::Entity::find()
                .filter(replica::Column::RegionId.eq(region.as_str()))
                .filter(replica::Column::State.eq(RegionStatus::Available.as_str()))
                .filter(replica::Column::ImageId.ne(but.as_str()))
                .order_by_desc(replica::Column::FinishedAt)
                .limit(limit)
                .all(db)
                .await?;
            let ids = replicas.iter().map(|row| row.image_id.as_str());
            Ok(image::Entity::find().filter(image::Column::Id.is_in(ids)).all(db).await?)
        };
        self.0.db.read(find).await?.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    /// Forgets an image and where it is, unless a copy of it is in flight. The bytes stay where they are.
    #[instrument(name = "DELETE image", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "DELETE", db.collection.name = "image"))]
    pub async fn image_remove(&self, id: &ImageId) -> Result<()> {
        self.0.db.transaction(async |txn| remove(&txn, id).await).await
    }
}

async fn insert(txn: &Transaction, image: &Image, taken: NameTaken<'_>) -> Result<()> {
    if let NameTaken::Supersede(_) = taken {
        image_generation::advance(txn).await?;
    }
    let row = entity::image::Model::from(image).into_active_model();
    if let Err(error) = row.insert(txn).await {
        return Err(match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => Error::ImageExists(image.id.clone()),
            _ => error.into(),
        });
    }
    // Replicas of an image that had the id before, left behind by a version that did not lock it: they say nothing about this one.
    cancel_suspended(txn, &image.id).await?;
    let of_image = entity::replica::Column::ImageId.eq(image.id.as_str());
    entity::replica::Entity::delete_many().filter(of_image).exec(txn).await?;
    image_reference::claim(txn, image, taken).await
}

async fn remove(txn: &Transaction, id: &ImageId) -> Result<()> {
    image_generation::advance(txn).await?;
    // From here on no call is accepted for it, and those that have been are committed: only now can its replicas be judged.
    let locked: Vec<Name> =
        Sql::on(txn).text("SELECT i.id FROM image AS i WHERE i.id = ").value(id.as_str()).lock("i").all(txn).await?;
    if locked.is_empty() {
        return Err(Error::ImageNotFound(id.clone()));
    }
    let row = entity::image::Entity::find_by_id(id.as_str()).one(txn).await?;
    let image = Image::try_from(row.ok_or_else(|| Error::ImageNotFound(id.clone()))?)?;
    cancel_suspended(txn, id).await?;
    image_reference::release(txn, &image).await?;
    forget_written(txn, id, None).await?;
    let of_image = entity::replica::Column::ImageId.eq(id.as_str());
    entity::replica::Entity::delete_many().filter(of_image).exec(txn).await?;
    // One that is unfinished is still to be given up.
    entity::ecs_copy::Entity::delete_many()
        .filter(entity::ecs_copy::Column::ImageId.eq(id.as_str()))
        .filter(entity::ecs_copy::Column::Finished.eq(true))
        .exec(txn)
        .await?;
    entity::image::Entity::delete_by_id(id.as_str()).exec(txn).await?;
    Ok(())
}

/// Cancels the copies of an image that are suspended. Returns an error if it is being copied to a region, or waits for it.
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

/// Puts images and their replicas together. Each row is looked at once.
fn with_replicas(
    images: Vec<entity::image::Model>,
    replicas: Vec<entity::replica::Model>,
) -> Result<Vec<WithReplicas>> {
    let mut of_image: HashMap<String, Vec<entity::replica::Model>> = HashMap::with_capacity(images.len());
    for replica in replicas {
        of_image.entry(replica.image_id.clone()).or_default().push(replica);
    }
    let together = |row: entity::image::Model| {
        let replicas = of_image.remove(&row.id).unwrap_or_default();
        Ok((row.try_into()?, with_regions(replicas)?))
    };
    images.into_iter().map(together).collect()
}

fn with_regions(rows: Vec<entity::replica::Model>) -> Result<Vec<(RegionId, Replica)>> {
    rows.into_iter().map(|row| Ok((region_of(&row)?, row.replica()?))).collect()
}

fn region_of(row: &entity::replica::Model) -> Result<RegionId> {
    Ok(entity::parse("replica.region_id", &row.region_id)?)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use sea_orm::{EntityTrait as _, QueryFilter as _, QueryTrait as _, sqlx};

    use super::ImageFilter;
    use crate::state::{embedded::Embedded, entity::image::Entity};

    /// How many steps of its machine SQLite takes, in hundreds, to find the newest of so many images of one name.
    async fn steps(images: usize) -> u64 {
        let embedded = Embedded::open(["there"], |settings| settings).await;
        for n in 0..images {
            embedded.add(&format!("image-{n:04}")).await;
        }
        let filter = ImageFilter { latest_only: true, ..ImageFilter::default() };
        let query = Entity::find().filter(filter.condition()).build(sea_orm::DbBackend::Sqlite).to_string();
        let pool = embedded.state.0.db.readers().get_sqlite_connection_pool().clone();
        let mut connection = pool.acquire().await.expect("a connection");
        let steps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&steps);
        connection.lock_handle().await.expect("it answers").set_progress_handler(100, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            true
        });
        let found = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(&mut *connection).await.expect("the newest");
        assert_eq!(found.len(), 1);
        connection.lock_handle().await.expect("it answers").remove_progress_handler();
        drop(connection);
        embedded.end().await;
        steps.load(Ordering::Relaxed)
    }

    /// Twice as many cost about twice as much, and not four times.
    #[tokio::test]
    async fn the_newest_of_a_name_is_found_by_going_through_them_once() {
        let (some, twice) = (steps(200).await, steps(400).await);
        assert!(twice < some * 3, "{some}, {twice}");
    }
}
