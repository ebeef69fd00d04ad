//! Copies by ECS: the next claim of the replica resumes watching the same copy, and the leader aborts abandoned ones.

use std::collections::BTreeMap;

use domain::{EcsCopy, EcsImageId, ImageId, RegionId, RegionStatus, Stale, Timestamp};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, IntoActiveModel as _, QueryFilter, QuerySelect,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query},
};

use super::{
    Db, Result,
    connections::Transaction,
    entity::{self, columns::Number, ecs_copy},
    replica::{Key, Lock, check_fence, lock},
};

/// Maximum number of copies that are aborted in one round.
const SWEEP: u64 = 64;

impl Db {
    /// Returns the record of a copy, or begins one at the time of the database's clock. Returns an inner [`Stale`]
    /// error if the claim with that fence was overtaken.
    pub async fn ecs_copy_begin(
        &self,
        image: &ImageId,
        region: &RegionId,
        fence: u64,
    ) -> Result<std::result::Result<EcsCopy, Stale>> {
        self.0
            .connections
            .transaction(async |txn| {
                let txn = &txn;
                let Some(now) = check_fence(txn, image, region, fence).await? else { return Ok(Err(Stale)) };
                if let Some(row) = ecs_copy::Entity::find().filter(is_copy(image, region)).one(txn).await? {
                    return Ok(Ok(row.copy()));
                }
                let copy = EcsCopy::first(now);
                save(txn, image, region, &copy).await?;
                Ok(Ok(copy))
            })
            .await
    }

    /// Saves the record of a copy, unless the claim with that fence was overtaken.
    pub async fn ecs_copy_save(
        &self,
        image: &ImageId,
        region: &RegionId,
        fence: u64,
        copy: &EcsCopy,
    ) -> Result<std::result::Result<(), Stale>> {
        self.0
            .connections
            .transaction(async |txn| {
                let txn = &txn;
                if check_fence(txn, image, region, fence).await?.is_none() {
                    return Ok(Err(Stale));
                }
                save(txn, image, region, copy).await?;
                Ok(Ok(()))
            })
            .await
    }

    /// Returns abandoned copies: those of replicas that were canceled or removed, and earlier generations.
    pub async fn ecs_copy_abandoned(&self) -> Result<Vec<Key>> {
        use entity::replica;
        let same = |column: ecs_copy::Column, replica: replica::Column| {
            Expr::col((ecs_copy::Entity, column)).equals((replica::Entity, replica))
        };
        let needed = Query::select()
            .expr(Expr::val(1))
            .from(replica::Entity)
            .and_where(same(ecs_copy::Column::ImageId, replica::Column::ImageId))
            .and_where(same(ecs_copy::Column::RegionId, replica::Column::RegionId))
            .and_where(replica::Column::State.ne(RegionStatus::Canceled.as_str()))
            .take();
        let unfinished = Condition::all().add(ecs_copy::Column::Finished.eq(false)).add(Expr::not_exists(needed));
        let abandoned = Condition::any().add(ecs_copy::Column::Discarded.is_not_null()).add(unfinished);
        let query = ecs_copy::Entity::find().filter(abandoned).limit(SWEEP);
        let rows = self.0.connections.read(async |reader| Ok(query.all(&reader).await?)).await?;
        Ok(rows.iter().map(|row| row.key()).collect())
    }

    /// Records the image that a generation of a copy has produced. Needs no fence: the image exists whichever claim
    /// runs the copy, and aborting the copy requires its id.
    pub async fn ecs_copy_record_image(&self, image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Result<()> {
        self.0
            .connections
            .transaction(async |txn| {
                let txn = &txn;
                let image_id = copy.image.as_ref().map(EcsImageId::as_str);
                ecs_copy::Entity::update_many()
                    .col_expr(ecs_copy::Column::EcsImageId, Expr::value(image_id))
                    .col_expr(ecs_copy::Column::Since, Expr::value(Number(copy.since)))
                    .filter(is_copy(image, region))
                    .filter(ecs_copy::Column::Generation.eq(Number(copy.generation)))
                    .exec(txn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Returns a copy of which something is to be aborted: the image of an earlier generation, or the whole copy if no
    /// replica needs it. Begins a new generation if the image of the current one is to be aborted.
    pub async fn ecs_copy_abandon(&self, image: &ImageId, region: &RegionId) -> Result<Option<EcsCopy>> {
        self.0
            .connections
            .transaction(async |txn| {
                let txn = &txn;
                let Some((copy, is_needed, now)) = lock_copy(txn, image, region).await? else { return Ok(None) };
                if is_needed || copy.finished {
                    return Ok(copy.discarded.is_some().then_some(copy));
                }
                if copy.image.is_none() {
                    return Ok(Some(copy));
                }
                let next = copy.next(now);
                save(txn, image, region, &next).await?;
                Ok(Some(next))
            })
            .await
    }

    /// Deletes the record of a copy, unless a replica needs it again.
    pub async fn ecs_copy_forget(&self, image: &ImageId, region: &RegionId) -> Result<()> {
        self.0
            .connections
            .transaction(async |txn| {
                let txn = &txn;
                if let Some((copy, false, _)) = lock_copy(txn, image, region).await?
                    && copy.image.is_none()
                {
                    ecs_copy::Entity::delete_many().filter(is_copy(image, region)).exec(txn).await?;
                }
                Ok(())
            })
            .await
    }

    /// Records that the image of an earlier generation was aborted.
    pub async fn ecs_copy_clear_discarded(
        &self,
        image: &ImageId,
        region: &RegionId,
        discarded: &EcsImageId,
    ) -> Result<()> {
        self.0
            .connections
            .transaction(async |txn| {
                let txn = &txn;
                ecs_copy::Entity::update_many()
                    .col_expr(ecs_copy::Column::Discarded, Expr::value(None::<String>))
                    .filter(is_copy(image, region))
                    .filter(ecs_copy::Column::Discarded.eq(discarded.as_str()))
                    .exec(txn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Returns the ECS images of finished copies by image and region.
    pub async fn ecs_copies(&self, images: &[&ImageId]) -> Result<BTreeMap<Key, EcsImageId>> {
        let ids = images.iter().map(|id| id.as_str());
        let query = ecs_copy::Entity::find().filter(ecs_copy::Column::ImageId.is_in(ids));
        let rows = self.0.connections.read(async |reader| Ok(query.all(&reader).await?)).await?;
        let mut finished = BTreeMap::new();
        for row in rows {
            if let EcsCopy { image: Some(image), finished: true, .. } = row.copy() {
                finished.insert(row.key(), image);
            }
        }
        Ok(finished)
    }
}

/// Selects the copy of an image to a region.
fn is_copy(image: &ImageId, region: &RegionId) -> Condition {
    Condition::all()
        .add(ecs_copy::Column::ImageId.eq(image.as_str()))
        .add(ecs_copy::Column::RegionId.eq(region.as_str()))
}

/// Returns a copy, whether a replica needs it, and the time. Locks the replica for the transaction, so that it cannot
/// start to need the copy.
async fn lock_copy(
    txn: &Transaction,
    image: &ImageId,
    region: &RegionId,
) -> Result<Option<(EcsCopy, bool, Timestamp)>> {
    let locked = lock(txn, vec![(image.clone(), region.clone())], Lock::Update).await?;
    let is_needed = locked.rows.values().any(|row| row.state.0 != RegionStatus::Canceled);
    let Some(row) = ecs_copy::Entity::find().filter(is_copy(image, region)).one(txn).await? else { return Ok(None) };
    Ok(Some((row.copy(), is_needed, locked.now)))
}

async fn save(txn: &Transaction, image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Result<()> {
    use ecs_copy::Column;
    let row = ecs_copy::Model::from_copy(image, region, copy).into_active_model();
    let conflict = OnConflict::columns([Column::ImageId, Column::RegionId])
        .update_columns([Column::Generation, Column::Since, Column::EcsImageId, Column::Finished, Column::Discarded])
        .to_owned();
    ecs_copy::Entity::insert(row).on_conflict(conflict).exec_without_returning(txn).await?;
    Ok(())
}
