//! Copies that ECS makes: whoever claims a replica next goes on watching the same one, and those that nobody wants are given up.

use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait, Condition, EntityTrait, IntoActiveModel as _, QueryFilter, QuerySelect,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query},
};

use super::{
    Result, State,
    database::Transaction,
    entity::{self, ecs_copy},
    replica::{Key, Lock, held, lock},
};
use crate::domain::{EcsCopy, EcsImageId, ImageId, RegionId, RegionStatus, Stale, Timestamp};

/// How many copies are given up in one go.
const SWEEP: u64 = 64;

impl State {
    /// What is remembered of a copy, by the claim with that fence; what is not known yet begins now, by the database's clock.
    pub async fn ecs_copy_begin(
        &self,
        image: &ImageId,
        region: &RegionId,
        fence: u64,
    ) -> Result<std::result::Result<EcsCopy, Stale>> {
        self.0
            .db
            .transaction(async |txn| {
                let txn = &txn;
                let Some(now) = held(txn, image, region, fence).await? else { return Ok(Err(Stale)) };
                if let Some(row) = ecs_copy::Entity::find().filter(of(image, region)).one(txn).await? {
                    return Ok(Ok(row.copy()?));
                }
                let copy = EcsCopy::first(now);
                save(txn, image, region, &copy).await?;
                Ok(Ok(copy))
            })
            .await
    }

    /// Remembers how a copy goes on, if the claim with that fence has not been overtaken.
    pub async fn ecs_copy_note(
        &self,
        image: &ImageId,
        region: &RegionId,
        fence: u64,
        copy: &EcsCopy,
    ) -> Result<std::result::Result<(), Stale>> {
        self.0
            .db
            .transaction(async |txn| {
                let txn = &txn;
                if held(txn, image, region, fence).await?.is_none() {
                    return Ok(Err(Stale));
                }
                save(txn, image, region, copy).await?;
                Ok(Ok(()))
            })
            .await
    }

    /// Copies that nobody wants any more: of replicas that were canceled or are not there any more, and of generations before.
    pub async fn ecs_copy_abandoned(&self) -> Result<Vec<Key>> {
        use entity::replica;
        let same = |ours: ecs_copy::Column, theirs: replica::Column| {
            Expr::col((ecs_copy::Entity, ours)).equals((replica::Entity, theirs))
        };
        let wanted = Query::select()
            .expr(Expr::val(1))
            .from(replica::Entity)
            .and_where(same(ecs_copy::Column::ImageId, replica::Column::ImageId))
            .and_where(same(ecs_copy::Column::RegionId, replica::Column::RegionId))
            .and_where(replica::Column::State.ne(RegionStatus::Canceled.as_str()))
            .take();
        let unfinished = Condition::all().add(ecs_copy::Column::Finished.eq(false)).add(Expr::not_exists(wanted));
        let any = Condition::any().add(ecs_copy::Column::Discarded.is_not_null()).add(unfinished);
        let query = ecs_copy::Entity::find().filter(any).limit(SWEEP);
        let rows = self.0.db.read(async |db| Ok(query.all(&db).await?)).await?;
        rows.iter().map(|row| Ok(row.key()?)).collect()
    }

    /// Remembers which image a generation of a copy has become. That is so whoever holds the claim by now, and whoever gives the copy
    /// up has to know it.
    pub async fn ecs_copy_made(&self, image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Result<()> {
        self.0
            .db
            .transaction(async |txn| {
                let txn = &txn;
                let made = copy.image.as_ref().map(EcsImageId::as_str);
                ecs_copy::Entity::update_many()
                    .col_expr(ecs_copy::Column::EcsImageId, Expr::value(made))
                    .col_expr(ecs_copy::Column::Since, Expr::value(copy.since.as_millis()))
                    .filter(of(image, region))
                    .filter(ecs_copy::Column::Generation.eq(entity::signed(copy.generation)))
                    .exec(txn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// What there is to give up of a copy: an image of a generation before, or, if nobody wants the copy any more, all of it; its
    /// generation has ended then.
    pub async fn ecs_copy_abandon(&self, image: &ImageId, region: &RegionId) -> Result<Option<EcsCopy>> {
        self.0
            .db
            .transaction(async |txn| {
                let txn = &txn;
                let Some((copy, wanted, now)) = judged(txn, image, region).await? else { return Ok(None) };
                if wanted || copy.finished {
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

    /// Forgets a copy, unless somebody wants it again.
    pub async fn ecs_copy_forget(&self, image: &ImageId, region: &RegionId) -> Result<()> {
        self.0
            .db
            .transaction(async |txn| {
                let txn = &txn;
                if let Some((copy, false, _)) = judged(txn, image, region).await?
                    && copy.image.is_none()
                {
                    ecs_copy::Entity::delete_many().filter(of(image, region)).exec(txn).await?;
                }
                Ok(())
            })
            .await
    }

    /// An image has been given up: it need not be once more.
    pub async fn ecs_copy_discarded(&self, image: &ImageId, region: &RegionId, discarded: &EcsImageId) -> Result<()> {
        self.0
            .db
            .transaction(async |txn| {
                let txn = &txn;
                ecs_copy::Entity::update_many()
                    .col_expr(ecs_copy::Column::Discarded, Expr::value(None::<String>))
                    .filter(of(image, region))
                    .filter(ecs_copy::Column::Discarded.eq(discarded.as_str()))
                    .exec(txn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// The images that ECS has made of some images, by region.
    pub async fn ecs_copies(&self, images: &[&ImageId]) -> Result<BTreeMap<Key, EcsImageId>> {
        let ids = images.iter().map(|id| id.as_str());
        let query = ecs_copy::Entity::find().filter(ecs_copy::Column::ImageId.is_in(ids));
        let rows = self.0.db.read(async |db| Ok(query.all(&db).await?)).await?;
        let mut made = BTreeMap::new();
        for row in rows {
            if let EcsCopy { image: Some(image), finished: true, .. } = row.copy()? {
                made.insert(row.key()?, image);
            }
        }
        Ok(made)
    }
}

/// The copy of an image into a region.
fn of(image: &ImageId, region: &RegionId) -> Condition {
    Condition::all()
        .add(ecs_copy::Column::ImageId.eq(image.as_str()))
        .add(ecs_copy::Column::RegionId.eq(region.as_str()))
}

/// A copy, whether somebody wants it, and the time. Nobody can begin to want it until the transaction has ended.
async fn judged(txn: &Transaction, image: &ImageId, region: &RegionId) -> Result<Option<(EcsCopy, bool, Timestamp)>> {
    let locked = lock(txn, vec![(image.clone(), region.clone())], Lock::Change).await?;
    let wanted = locked.rows.values().any(|row| row.state != RegionStatus::Canceled.as_str());
    let Some(row) = ecs_copy::Entity::find().filter(of(image, region)).one(txn).await? else { return Ok(None) };
    Ok(Some((row.copy()?, wanted, locked.now)))
}

async fn save(txn: &Transaction, image: &ImageId, region: &RegionId, copy: &EcsCopy) -> Result<()> {
    use ecs_copy::Column;
    let row = ecs_copy::Model::of(image, region, copy).into_active_model();
    let conflict = OnConflict::columns([Column::ImageId, Column::RegionId])
        .update_columns([Column::Generation, Column::Since, Column::EcsImageId, Column::Finished, Column::Discarded])
        .to_owned();
    ecs_copy::Entity::insert(row).on_conflict(conflict).exec_without_returning(txn).await?;
    Ok(())
}
