//! Unfinished uploads: the next claim of the replica resumes them, and the leader aborts those that no claim will
//! resume.

use std::collections::HashMap;

use domain::{Digest, ImageId, RegionId, RegionStatus, Stale};
use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, QuerySelect, Set,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query},
};

use super::{
    Db, Result,
    connections::{Reader, Transaction},
    entity,
    replica::check_fence,
};

/// Maximum number of uploads that are aborted in one round.
const SWEEP: u64 = 64;

/// An upload that no claim will resume.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct AbandonedUpload {
    pub image: ImageId,
    pub region: RegionId,
    pub blob: Digest,
    /// The session in the store's own format; empty if it cannot be decrypted.
    pub session: String,
}

/// Returns the encryption context, which binds a session to its upload.
fn context(image: &ImageId, region: &RegionId, blob: Digest) -> String {
    format!("{image} {region} {blob}")
}

impl Db {
    /// Returns the sessions of the unfinished uploads of an image to a region. Sessions that were encrypted with
    /// another key are left out, so their uploads start over.
    pub async fn uploads(&self, image: &ImageId, region: &RegionId) -> Result<HashMap<Digest, String>> {
        use entity::upload::{Column, Entity, Model};
        let query =
            Entity::find().filter(Column::ImageId.eq(image.as_str())).filter(Column::RegionId.eq(region.as_str()));
        let rows: Vec<Model> = self.0.connections.read(async |reader: Reader| Ok(query.all(&reader).await?)).await?;
        let mut uploads = HashMap::new();
        for row in rows {
            let blob = row.blob.0;
            if let Some(session) = self.0.seal.open(&context(image, region, blob), &row.session) {
                uploads.insert(blob, session);
            }
        }
        Ok(uploads)
    }

    /// Saves the session of an upload, unless the claim with that fence was overtaken.
    pub async fn upload_save(
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
            tracing::warn!(%image, %region, "failed to encrypt the upload session for lack of randomness; an interrupted upload will start over");
            return Ok(Ok(()));
        };
        let save = async |txn: Transaction| {
            let txn = &txn;
            if check_fence(txn, image, region, fence).await?.is_none() {
                return Ok(Err(Stale));
            }
            let row = ActiveModel {
                image_id: Set(image.clone().into()),
                region_id: Set(region.clone().into()),
                blob: Set(blob.into()),
                session: Set(sealed.clone()),
            };
            let conflict = OnConflict::columns([Column::ImageId, Column::RegionId, Column::Blob])
                .update_column(Column::Session)
                .to_owned();
            Entity::insert(row).on_conflict(conflict).exec_without_returning(txn).await?;
            Ok(Ok(()))
        };
        self.0.connections.transaction(save).await
    }

    /// Deletes an upload's record.
    pub async fn upload_forget(&self, image: &ImageId, region: &RegionId, blob: Digest) -> Result<()> {
        let key = (image.clone().into(), region.clone().into(), blob.into());
        let delete = async |txn: Transaction| {
            let txn = &txn;
            entity::upload::Entity::delete_by_id(key.clone()).exec(txn).await?;
            Ok(())
        };
        self.0.connections.transaction(delete).await
    }

    /// Returns abandoned uploads to a region: those of replicas that have ended or were removed.
    pub async fn upload_abandoned(&self, region: &RegionId) -> Result<Vec<AbandonedUpload>> {
        use entity::{replica, upload};
        let open = [RegionStatus::Pending.as_str(), RegionStatus::Copying.as_str()];
        let same = |column: upload::Column, replica: replica::Column| {
            Expr::col((upload::Entity, column)).equals((replica::Entity, replica))
        };
        let resumable = Query::select()
            .expr(Expr::val(1))
            .from(replica::Entity)
            .and_where(same(upload::Column::ImageId, replica::Column::ImageId))
            .and_where(same(upload::Column::RegionId, replica::Column::RegionId))
            .and_where(replica::Column::State.is_in(open))
            .to_owned();
        let abandoned = upload::Entity::find()
            .filter(upload::Column::RegionId.eq(region.as_str()))
            .filter(Expr::not_exists(resumable));
        let query = abandoned.limit(SWEEP);
        let rows = self.0.connections.read(async |reader| Ok(query.all(&reader).await?)).await?;
        let decode = |row: upload::Model| {
            let (image, region, blob) = (row.image_id.0, row.region_id.0, row.blob.0);
            // An empty session aborts nothing in the store, and the record is deleted.
            let session = self.0.seal.open(&context(&image, &region, blob), &row.session).unwrap_or_default();
            AbandonedUpload { image, region, blob, session }
        };
        Ok(rows.into_iter().map(decode).collect())
    }
}
