//! Uploads that claims have begun and not ended: whoever claims the replica next goes on with them, and those that nobody will
//! go on with are given up.

use std::collections::HashMap;

use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, QuerySelect, Set,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query},
};

use super::{
    Result, State,
    database::{Reader, Transaction},
    entity,
    replica::held,
};
use crate::domain::{Digest, ImageId, RegionId, RegionStatus, Stale};

/// How many uploads are given up in one go.
const SWEEP: u64 = 64;

/// An upload that nobody will go on with.
#[derive(Debug, Clone)]
pub struct Abandoned {
    /// The image.
    pub image: ImageId,
    /// The region.
    pub region: RegionId,
    /// The blob.
    pub blob: Digest,
    /// What its store needs to know about it.
    pub session: String,
}

/// What a session belongs to.
fn context(image: &ImageId, region: &RegionId, blob: Digest) -> String {
    format!("{image} {region} {blob}")
}

impl State {
    /// The uploads of an image to a region that were begun and have not ended. Those that another database's password sealed are none: they
    /// begin anew.
    pub async fn uploads(&self, image: &ImageId, region: &RegionId) -> Result<HashMap<Digest, String>> {
        use entity::upload::{Column, Entity, Model};
        let of = |column: Column, value: &str| column.eq(value);
        let query =
            Entity::find().filter(of(Column::ImageId, image.as_str())).filter(of(Column::RegionId, region.as_str()));
        let rows: Vec<Model> = self.0.db.read(async |db: Reader| Ok(query.all(&db).await?)).await?;
        let mut uploads = HashMap::new();
        for row in rows {
            let blob = entity::parse("upload.blob", &row.blob)?;
            if let Some(session) = self.0.seal.open(&context(image, region, blob), &row.session) {
                uploads.insert(blob, session);
            }
        }
        Ok(uploads)
    }

    /// Remembers an upload, if the claim with that fence has not been overtaken.
    pub async fn upload_note(
        &self,
        image: &ImageId,
        region: &RegionId,
        fence: u64,
        blob: Digest,
        session: &str,
    ) -> Result<std::result::Result<(), Stale>> {
        use entity::upload::{ActiveModel, Column, Entity};
        let sealed = self.0.seal.seal(&context(image, region, blob), session);
        let Some(sealed) = &sealed else {
            tracing::warn!(%image, %region, "there is no randomness to seal an upload with; it is not remembered and begins anew when it breaks off");
            return Ok(Ok(()));
        };
        let note = async |txn: Transaction| {
            let txn = &txn;
            if held(txn, image, region, fence).await?.is_none() {
                return Ok(Err(Stale));
            }
            let row = ActiveModel {
                image_id: Set(image.to_string()),
                region_id: Set(region.to_string()),
                blob: Set(blob.to_string()),
                session: Set(sealed.clone()),
            };
            let known = OnConflict::columns([Column::ImageId, Column::RegionId, Column::Blob])
                .update_column(Column::Session)
                .to_owned();
            Entity::insert(row).on_conflict(known).exec_without_returning(txn).await?;
            Ok(Ok(()))
        };
        self.0.db.transaction(note).await
    }

    /// Forgets an upload.
    pub async fn upload_forget(&self, image: &ImageId, region: &RegionId, blob: Digest) -> Result<()> {
        let key = (image.to_string(), region.to_string(), blob.to_string());
        let forget = async |txn: Transaction| {
            let txn = &txn;
            entity::upload::Entity::delete_by_id(key.clone()).exec(txn).await?;
            Ok(())
        };
        self.0.db.transaction(forget).await
    }

    /// Uploads to a region that are abandoned: those of replicas that have ended, or are not there any more.
    pub async fn upload_abandoned(&self, region: &RegionId) -> Result<Vec<Abandoned>> {
        use entity::{replica, upload};
        let open = [RegionStatus::Pending.as_str(), RegionStatus::Copying.as_str()];
        let same = |ours: upload::Column, theirs: replica::Column| {
            Expr::col((upload::Entity, ours)).equals((replica::Entity, theirs))
        };
        let wanted = Query::select()
            .expr(Expr::val(1))
            .from(replica::Entity)
            .and_where(same(upload::Column::ImageId, replica::Column::ImageId))
            .and_where(same(upload::Column::RegionId, replica::Column::RegionId))
            .and_where(replica::Column::State.is_in(open))
            .to_owned();
        let abandoned = upload::Entity::find()
            .filter(upload::Column::RegionId.eq(region.as_str()))
            .filter(Expr::not_exists(wanted));
        let query = abandoned.limit(SWEEP);
        let rows = self.0.db.read(async |db| Ok(query.all(&db).await?)).await?;
        let read = |row: upload::Model| {
            let image: ImageId = entity::parse("upload.image_id", &row.image_id)?;
            let region: RegionId = entity::parse("upload.region_id", &row.region_id)?;
            let blob: Digest = entity::parse("upload.blob", &row.blob)?;
            // One that can't be opened is no session to any store, and is forgotten.
            let session = self.0.seal.open(&context(&image, &region, blob), &row.session).unwrap_or_default();
            Ok(Abandoned { image, region, blob, session })
        };
        rows.into_iter().map(read).collect()
    }
}
