//! Records of the images that this service has made visible, by region and name. A copy announces a publication before
//! it writes to the store and completes it afterwards.

use std::collections::BTreeMap;

use domain::{Digest, ImageId, ImageName, Published, RegionId, Stale, Timestamp, Verification};
use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, Set,
    sea_query::{Condition, OnConflict},
};
use tokio::sync::oneshot;

use super::{
    Db, Error, Result,
    blob_records::forget_written,
    connections::Transaction,
    entity::published::{ActiveModel, Column, Entity, Text},
    group_commit,
    replica::{self, Lock},
};

/// Maximum length of a recorded name or location, in characters.
const MAX_NAME_LENGTH: usize = 400;

/// A publication of an image in a region.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Publication<'a> {
    pub image: &'a ImageId,
    pub region: &'a RegionId,
    /// Fence of the claim.
    pub fence: u64,
    /// The image's name in the region's store.
    pub name: &'a ImageName,
    /// Location of the image in the store, if the store reports it.
    pub location: Option<&'a str>,
    /// Digest of the image's root.
    pub root: Digest,
}

/// Maximum number of publications in one commit.
pub(super) const BATCH: usize = 64;

/// Maximum number of publications that wait for a commit.
pub(super) const QUEUE: usize = 1_024;

/// An announcement or completion of a publication.
#[derive(Debug)]
pub(super) struct PublicationWrite {
    image: ImageId,
    region: RegionId,
    fence: u64,
    name: ImageName,
    location: Option<String>,
    root: Digest,
    phase: Phase,
}

/// Phase of a publication.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The name is about to show the root.
    Announced,
    /// The name shows the root. Holds how the image was verified; `None` if the image is known to be incomplete.
    Completed(Option<Verification>),
}

/// A publication in the queue.
pub(super) type Queued = group_commit::Queued<PublicationWrite, std::result::Result<(), Stale>>;

/// An image's name in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RegionName {
    pub region: RegionId,
    /// The name in the region's store.
    pub name: ImageName,
    /// Location of the image in the store, if the store reports it.
    pub location: Option<String>,
}

/// Whether a name or location is short enough to be recorded.
pub(super) fn is_recorded(name: &str) -> bool {
    name.chars().count() <= MAX_NAME_LENGTH
}

impl Db {
    /// Returns the publications of names by region. Regions without a record are left out.
    pub async fn published(&self, names: &[RegionName]) -> Result<BTreeMap<RegionId, Published>> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let is_name = |RegionName { region, name, .. }: &RegionName| {
            Condition::all().add(Column::RegionId.eq(region.as_str())).add(Column::Name.eq(name.0.as_str()))
        };
        let query = Entity::find().filter(names.iter().map(is_name).fold(Condition::any(), Condition::add));
        let rows = self.0.connections.read(async |reader| Ok(query.all(&reader).await?)).await?;
        let published = rows.into_iter().map(|row| {
            let region = row.region_id.0.clone();
            let name = names.iter().find(|name| name.region == region);
            (region, row.published(name.and_then(|name| name.location.as_deref())))
        });
        Ok(published.collect())
    }

    /// Announces that a name is about to show another root, unless the claim with that fence was overtaken. From then
    /// on, both roots count as this service's own.
    pub async fn publication_announce(&self, publication: Publication<'_>) -> Result<std::result::Result<(), Stale>> {
        self.submit_publication(publication, Phase::Announced).await
    }

    /// Records that a name shows a root, and how the image was verified, unless the claim with that fence was
    /// overtaken. `verification` is `None` for an image that is known to be incomplete.
    pub async fn publication_complete(
        &self,
        publication: Publication<'_>,
        verification: Option<Verification>,
    ) -> Result<std::result::Result<(), Stale>> {
        self.submit_publication(publication, Phase::Completed(verification)).await
    }

    /// Queues a publication for group commit, because many small images become visible at the same time.
    async fn submit_publication(
        &self,
        publication: Publication<'_>,
        phase: Phase,
    ) -> Result<std::result::Result<(), Stale>> {
        let Publication { image, region, fence, name, location, root } = publication;
        let item = PublicationWrite {
            image: image.clone(),
            region: region.clone(),
            fence,
            name: name.clone(),
            location: location.map(str::to_owned),
            root,
            phase,
        };
        let (reply, result) = oneshot::channel();
        self.0.publication_queue.send(Queued { item, reply }).await.map_err(|_| Error::Closed)?;
        result.await.map_err(|_| Error::Closed)?
    }

    /// Records that everything below a root was read and is intact, if that root was published under this name.
    pub async fn publication_confirm(&self, region: &RegionId, name: &ImageName, root: Digest) -> Result<()> {
        let verification = Set(Some(Verification::Verified.into()));
        let confirm = async |txn: Transaction| {
            Entity::update_many()
                .set(ActiveModel { verification: verification.clone(), ..ActiveModel::default() })
                .filter(Column::RegionId.eq(region.as_str()))
                .filter(Column::Name.eq(name.0.as_str()))
                .filter(Column::RootDigest.eq(root.to_string()))
                .exec(&txn)
                .await?;
            Ok(())
        };
        self.0.connections.transaction(confirm).await
    }
}

/// Commits publications in one transaction. Returns the result of each.
pub(super) async fn commit_batch(
    db: &Db,
    writes: &[PublicationWrite],
) -> Result<Vec<Result<std::result::Result<(), Stale>>>> {
    let commit = async |txn: Transaction| {
        let txn = &txn;
        let keys = writes.iter().map(|write| (write.image.clone(), write.region.clone()));
        let locked = replica::lock(txn, keys.collect(), Lock::Share).await?;
        // Transactions write in the order of the keys to avoid deadlocks.
        let mut order: Vec<usize> = (0..writes.len()).collect();
        order.sort_by_key(|index| (&writes[*index].region, &writes[*index].name.0));
        let mut results = vec![Ok(()); writes.len()];
        for index in order {
            let write = &writes[index];
            if locked.has_claim(&write.image, &write.region, write.fence) {
                save(txn, write, locked.now).await?;
            } else {
                results[index] = Err(Stale);
            }
        }
        Ok(results)
    };
    Ok(db.0.connections.transaction_once(commit).await?.into_iter().map(Ok).collect())
}

async fn save(txn: &Transaction, write: &PublicationWrite, now: Timestamp) -> Result<()> {
    let PublicationWrite { image, region, name, location, root, phase, .. } = write;
    if !is_recorded(&name.0) {
        return Ok(());
    }
    let root = Some((*root).into());
    let row = ActiveModel {
        region_id: Set(region.clone().into()),
        name: Set(name.0.clone()),
        image_id: Set(image.clone().into()),
        changed_at: Set(now.into()),
        root_digest: Set(None),
        pending_digest: Set(None),
        verification: Set(None),
        location: Set(None),
    };
    let mut updated = vec![Column::PendingDigest, Column::ImageId, Column::ChangedAt];
    let row = match phase {
        // Keeps the published root together with the pending one.
        Phase::Announced => ActiveModel { pending_digest: Set(root), ..row },
        Phase::Completed(verification) => {
            updated.extend([Column::RootDigest, Column::Verification, Column::Location]);
            ActiveModel {
                root_digest: Set(root),
                verification: Set(verification.map(Text::from)),
                location: Set(location.clone()),
                ..row
            }
        }
    };
    let conflict = OnConflict::columns([Column::RegionId, Column::Name]).update_columns(updated).to_owned();
    Entity::insert(row).on_conflict(conflict).exec_without_returning(txn).await?;
    if matches!(phase, Phase::Completed(_)) {
        forget_written(txn, image, Some(region)).await?;
    }
    Ok(())
}
