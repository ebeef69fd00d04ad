//! Records of blobs that need no further verification: blobs that unfinished copies have written, and blobs whose
//! content was read in a region and matched the digest.

use std::collections::HashSet;

use domain::{Digest, ImageId, RegionId, Stale};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect as _, Set, sea_query::OnConflict};

use super::{
    Db, Result,
    connections::{Reader, Transaction},
    entity,
    published::is_recorded,
    replica::check_fence,
};

/// A blob at a location in a region's store.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ReadBlob<'a> {
    pub region: &'a RegionId,
    /// A repository or the prefix of a layout.
    pub location: &'a str,
    pub blob: Digest,
}

impl Db {
    /// Returns the blobs that copies of an image to a region have written since the image was last visible there.
    pub async fn blobs_written(&self, image: &ImageId, region: &RegionId) -> Result<HashSet<Digest>> {
        use entity::written_blob::{Column, Entity, Text};
        let read = async |reader: Reader| {
            let blobs: Vec<Text<Digest>> = Entity::find()
                .select_only()
                .column(Column::Blob)
                .filter(Column::ImageId.eq(image.as_str()))
                .filter(Column::RegionId.eq(region.as_str()))
                .into_tuple()
                .all(&reader)
                .await?;
            Ok(blobs.into_iter().map(|blob| blob.0).collect())
        };
        self.0.connections.read(read).await
    }

    /// Records blobs that a copy has written, unless the claim with that fence was overtaken.
    pub async fn blobs_record_written(
        &self,
        image: &ImageId,
        region: &RegionId,
        fence: u64,
        blobs: &[Digest],
    ) -> Result<std::result::Result<(), Stale>> {
        use entity::written_blob::{ActiveModel, Column, Entity};
        let record = async |txn: Transaction| {
            let txn = &txn;
            if check_fence(txn, image, region, fence).await?.is_none() {
                return Ok(Err(Stale));
            }
            let rows = blobs.iter().map(|blob| ActiveModel {
                image_id: Set(image.clone().into()),
                region_id: Set(region.clone().into()),
                blob: Set((*blob).into()),
            });
            let conflict = OnConflict::columns([Column::ImageId, Column::RegionId, Column::Blob])
                .update_column(Column::Blob)
                .to_owned();
            Entity::insert_many(rows).on_conflict(conflict).exec_without_returning(txn).await?;
            Ok(Ok(()))
        };
        if blobs.is_empty() {
            return Ok(Ok(()));
        }
        self.0.connections.transaction(record).await
    }

    /// Returns the witness that was recorded when the blob was read and matched its digest. The outer `None` means that
    /// no reading is recorded; the inner `None`, that the store had no witness.
    pub async fn blob_reading(&self, blob: ReadBlob<'_>) -> Result<Option<Option<String>>> {
        let key = (blob.region.clone().into(), blob.location.to_owned(), blob.blob.into());
        let find = entity::read_blob::Entity::find_by_id(key);
        let row = self.0.connections.read(async |reader| Ok(find.one(&reader).await?)).await?;
        Ok(row.map(|row| row.witness))
    }

    /// Records that a blob was read and matched its digest. `witness` is the store's version mark of the blob, such as
    /// an `ETag`, which changes when the blob is written again.
    pub async fn blob_record_reading(&self, blob: ReadBlob<'_>, witness: Option<&str>) -> Result<()> {
        use entity::read_blob::{ActiveModel, Column, Entity};
        if !is_recorded(blob.location) {
            return Ok(());
        }
        let record = async |txn: Transaction| {
            let txn = &txn;
            let row = ActiveModel {
                region_id: Set(blob.region.clone().into()),
                location: Set(blob.location.to_owned()),
                blob: Set(blob.blob.into()),
                witness: Set(witness.map(str::to_owned)),
            };
            let conflict = OnConflict::columns([Column::RegionId, Column::Location, Column::Blob])
                .update_column(Column::Witness)
                .to_owned();
            Entity::insert(row).on_conflict(conflict).exec_without_returning(txn).await?;
            Ok(())
        };
        self.0.connections.transaction(record).await
    }
}

/// Deletes the records of blobs that copies of an image have written, in one region or in all.
pub(super) async fn forget_written(txn: &Transaction, image: &ImageId, region: Option<&RegionId>) -> Result<()> {
    use entity::written_blob::{Column, Entity};
    let mut delete = Entity::delete_many().filter(Column::ImageId.eq(image.as_str()));
    if let Some(region) = region {
        delete = delete.filter(Column::RegionId.eq(region.as_str()));
    }
    delete.exec(txn).await?;
    Ok(())
}
