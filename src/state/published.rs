//! What this service has made visible by which name, and which blobs it need not doubt.

use std::collections::{BTreeMap, HashSet};

use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, QuerySelect as _, Set,
    sea_query::{Condition, OnConflict},
};

use tokio::sync::oneshot;

use super::{
    Error, Result, State,
    database::{Reader, Transaction},
    entity, group,
    replica::{self, held},
};
use crate::domain::{Digest, ImageId, ImageName, Published, RegionId, Stale, Timestamp, Verification};

/// The longest name, and the longest location, that is remembered, in characters.
const MAX_NAME: usize = 400;

/// A copy that is about to become visible, or has become so.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// The image.
    pub image: &'a ImageId,
    /// The region.
    pub region: &'a RegionId,
    /// The fence of the claim.
    pub fence: u64,
    /// The image's name there.
    pub name: &'a ImageName,
    /// Where the region's store has it, if it says so.
    pub location: Option<&'a str>,
    /// The root that it shows.
    pub root: Digest,
}

/// Publications that are committed together at most.
pub(super) const BATCH: usize = 64;

/// Publications that may wait to be committed.
pub(super) const QUEUE: usize = 1_024;

/// A publication that waits to be written down: it begins, or has ended.
#[derive(Debug)]
pub(super) struct Noted {
    image: ImageId,
    region: RegionId,
    fence: u64,
    name: ImageName,
    location: Option<String>,
    root: Digest,
    phase: Phase,
}

/// How far a publication has come.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The name is about to show the root.
    Begun,
    /// The name shows it; and how it is known that all of it is there, unless something is known to be lacking.
    Ended(Option<Verification>),
}

/// Publications that wait to be committed.
pub(super) type Queued = group::Queued<Noted, std::result::Result<(), Stale>>;

/// An image's name in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionName {
    /// The region.
    pub region: RegionId,
    /// The name there.
    pub name: ImageName,
    /// Where the region's store has it, if it says so.
    pub location: Option<String>,
}

/// A blob that a region had before, and what its store says of it.
#[derive(Debug, Clone, Copy)]
pub struct ReadBlob<'a> {
    /// The region.
    pub region: &'a RegionId,
    /// Where the region's store has it.
    pub location: &'a str,
    /// The blob.
    pub blob: Digest,
}

fn is_kept(name: &str) -> bool {
    name.chars().count() <= MAX_NAME
}

impl State {
    /// What was published by some names, each in its region; those of which nothing is known are left out.
    pub async fn published(&self, names: &[RegionName]) -> Result<BTreeMap<RegionId, Published>> {
        use entity::published::{Column, Entity};
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let one = |RegionName { region, name, .. }: &RegionName| {
            Condition::all().add(Column::RegionId.eq(region.as_str())).add(Column::Name.eq(name.0.as_str()))
        };
        let wanted = names.iter().map(one).fold(Condition::any(), Condition::add);
        let query = Entity::find().filter(wanted);
        let rows = self.0.db.read(async |db| Ok(query.all(&db).await?)).await?;
        rows.into_iter()
            .map(|row| {
                let region = entity::parse("published.region_id", &row.region_id)?;
                let asked = names.iter().find(|asked| asked.region == region);
                let published = row.published(asked.and_then(|asked| asked.location.as_deref()))?;
                Ok((region, published))
            })
            .collect()
    }

    /// Writes down that a name is about to show another root, if the claim with that fence has not been overtaken: from then on, both
    /// roots are this service's own.
    pub async fn publication_begin(&self, publication: Publication<'_>) -> Result<std::result::Result<(), Stale>> {
        self.note_publication(publication, Phase::Begun).await
    }

    /// Writes down that a name shows a root, and how it is known that all of it is there; nothing if something is known to be lacking.
    pub async fn publication_end(
        &self,
        publication: Publication<'_>,
        whole: Option<Verification>,
    ) -> Result<std::result::Result<(), Stale>> {
        self.note_publication(publication, Phase::Ended(whole)).await
    }

    /// Hands a publication to the task that commits them together: many small images become visible at the same time.
    async fn note_publication(
        &self,
        publication: Publication<'_>,
        phase: Phase,
    ) -> Result<std::result::Result<(), Stale>> {
        let Publication { image, region, fence, name, location, root } = publication;
        let asked = Noted {
            image: image.clone(),
            region: region.clone(),
            fence,
            name: name.clone(),
            location: location.map(str::to_owned),
            root,
            phase,
        };
        let (reply, answer) = oneshot::channel();
        self.0.publications.send(Queued { asked, reply }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Writes down that everything below a root which a name shows was read and is whole, if that root was published there.
    pub async fn publication_confirm(&self, region: &RegionId, name: &ImageName, root: Digest) -> Result<()> {
        use entity::published::{ActiveModel, Column, Entity};
        let verified = Set(Some(Verification::Verified.as_str().to_owned()));
        let confirm = async |txn: Transaction| {
            let txn = &txn;
            Entity::update_many()
                .set(ActiveModel { verification: verified.clone(), ..ActiveModel::default() })
                .filter(Column::RegionId.eq(region.as_str()))
                .filter(Column::Name.eq(name.0.as_str()))
                .filter(Column::RootDigest.eq(root.to_string()))
                .exec(txn)
                .await?;
            Ok(())
        };
        self.0.db.transaction(confirm).await
    }

    /// The blobs that copies of an image to a region have written since it was last visible there.
    pub async fn blobs_written(&self, image: &ImageId, region: &RegionId) -> Result<HashSet<Digest>> {
        use entity::written_blob::{Column, Entity};
        let read = async |db: Reader| {
            let found: Vec<String> = Entity::find()
                .select_only()
                .column(Column::Blob)
                .filter(Column::ImageId.eq(image.as_str()))
                .filter(Column::RegionId.eq(region.as_str()))
                .into_tuple()
                .all(&db)
                .await?;
            found.iter().map(|blob| Ok(entity::parse("written_blob.blob", blob)?)).collect()
        };
        self.0.db.read(read).await
    }

    /// Remembers blobs that a copy has written, if the claim with that fence has not been overtaken.
    pub async fn blobs_note_written(
        &self,
        image: &ImageId,
        region: &RegionId,
        fence: u64,
        blobs: &[Digest],
    ) -> Result<std::result::Result<(), Stale>> {
        use entity::written_blob::{ActiveModel, Column, Entity};
        let note = async |txn: Transaction| {
            let txn = &txn;
            if held(txn, image, region, fence).await?.is_none() {
                return Ok(Err(Stale));
            }
            let rows = blobs.iter().map(|blob| ActiveModel {
                image_id: Set(image.to_string()),
                region_id: Set(region.to_string()),
                blob: Set(blob.to_string()),
            });
            let known = OnConflict::columns([Column::ImageId, Column::RegionId, Column::Blob])
                .update_column(Column::Blob)
                .to_owned();
            Entity::insert_many(rows).on_conflict(known).exec_without_returning(txn).await?;
            Ok(Ok(()))
        };
        if blobs.is_empty() {
            return Ok(Ok(()));
        }
        self.0.db.transaction(note).await
    }

    /// What a region's store said of a blob when it was read there and had its digest; nothing if it never was.
    pub async fn blob_reading(&self, read: ReadBlob<'_>) -> Result<Option<Option<String>>> {
        let key = (read.region.to_string(), read.location.to_owned(), read.blob.to_string());
        let find = entity::read_blob::Entity::find_by_id(key);
        let row = self.0.db.read(async |db| Ok(find.one(&db).await?)).await?;
        Ok(row.map(|row| row.witness))
    }

    /// Remembers that a blob was read and had its digest.
    pub async fn blob_note_reading(&self, read: ReadBlob<'_>, witness: Option<&str>) -> Result<()> {
        use entity::read_blob::{ActiveModel, Column, Entity};
        if !is_kept(read.location) {
            return Ok(());
        }
        let note = async |txn: Transaction| {
            let txn = &txn;
            let row = ActiveModel {
                region_id: Set(read.region.to_string()),
                location: Set(read.location.to_owned()),
                blob: Set(read.blob.to_string()),
                witness: Set(witness.map(str::to_owned)),
            };
            let known = OnConflict::columns([Column::RegionId, Column::Location, Column::Blob])
                .update_column(Column::Witness)
                .to_owned();
            Entity::insert(row).on_conflict(known).exec_without_returning(txn).await?;
            Ok(())
        };
        self.0.db.transaction(note).await
    }
}

/// Commits publications together, and answers each.
pub(super) async fn commit_together(
    state: &State,
    noted: &[Noted],
) -> Result<Vec<Result<std::result::Result<(), Stale>>>> {
    let write = async |txn: Transaction| {
        let txn = &txn;
        let keys = noted.iter().map(|publication| (publication.image.clone(), publication.region.clone()));
        let locked = replica::lock(txn, keys.collect(), replica::Lock::Keep).await?;
        // In one order, whatever others write at the same time.
        let mut order: Vec<usize> = (0..noted.len()).collect();
        order.sort_by_key(|place| (&noted[*place].region, &noted[*place].name.0));
        let mut answers = vec![Ok(()); noted.len()];
        for place in order {
            let Noted { image, region, fence, .. } = &noted[place];
            if locked.holds(image, region, *fence) {
                publish(txn, &noted[place], locked.now).await?;
            } else {
                answers[place] = Err(Stale);
            }
        }
        Ok(answers)
    };
    Ok(state.0.db.transaction_once(write).await?.into_iter().map(Ok).collect())
}

/// Writes down a publication that begins, or has ended.
async fn publish(txn: &Transaction, noted: &Noted, now: Timestamp) -> Result<()> {
    use entity::published::{ActiveModel, Column, Entity};
    let Noted { image, region, name, location, root, phase, .. } = noted;
    if !is_kept(&name.0) {
        return Ok(());
    }
    let (root, row) = (
        Some(root.to_string()),
        ActiveModel {
            region_id: Set(region.to_string()),
            name: Set(name.0.clone()),
            image_id: Set(image.to_string()),
            changed_at: Set(now.as_millis()),
            ..ActiveModel::default()
        },
    );
    let (row, changed) = match phase {
        Phase::Begun => (
            ActiveModel {
                root_digest: Set(None),
                begun_digest: Set(root),
                verification: Set(None),
                location: Set(None),
                ..row
            },
            vec![Column::BegunDigest, Column::ImageId, Column::ChangedAt],
        ),
        Phase::Ended(whole) => (
            ActiveModel {
                root_digest: Set(root),
                begun_digest: Set(None),
                verification: Set(whole.map(|verification| verification.as_str().to_owned())),
                location: Set(location.clone()),
                ..row
            },
            vec![
                Column::RootDigest,
                Column::BegunDigest,
                Column::Verification,
                Column::Location,
                Column::ImageId,
                Column::ChangedAt,
            ],
        ),
    };
    let known = OnConflict::columns([Column::RegionId, Column::Name]).update_columns(changed).to_owned();
    Entity::insert(row).on_conflict(known).exec_without_returning(txn).await?;
    if matches!(phase, Phase::Ended(_)) {
        forget_written(txn, image, Some(region)).await?;
    }
    Ok(())
}

/// Forgets the blobs that copies of an image have written, in one region or in all.
pub(super) async fn forget_written(txn: &Transaction, image: &ImageId, region: Option<&RegionId>) -> Result<()> {
    use entity::written_blob::{Column, Entity};
    let mut gone = Entity::delete_many().filter(Column::ImageId.eq(image.as_str()));
    if let Some(region) = region {
        gone = gone.filter(Column::RegionId.eq(region.as_str()));
    }
    gone.exec(txn).await?;
    Ok(())
}
