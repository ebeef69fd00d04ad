//! Claims: assigns due replicas to workers.
//!
//! Every region has its own queue in the index `replica_due`, oldest replica first. A claim takes the head of one
//! queue, drawn at random from those with due replicas, so that a long queue does not delay other regions. It also
//! claims the other due replicas of the same images, so that one read of the source serves all of them. Rows that
//! another claim has locked are skipped.

use std::{collections::BTreeMap, time::Duration};

use domain::{Event, Image, ImageId, RegionId, RegionStatus, RequestId, WorkerId};
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QuerySelect};

use super::{accept::TraceContext, settlement};
use crate::{
    Db, Result,
    connections::{Reader, Transaction},
    entity::{self, replica::Text},
    region_capacity::{Capacity, region_rows},
    replica,
    sql::{ColumnKind, Rows, Sql},
};

/// Maximum number of synchronizations that a copy's span is linked to.
const MAX_LINKS: usize = 8;

/// A worker's request for work.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ClaimRequest<'a> {
    pub owner: &'a WorkerId,
    /// Free lanes of the regions that the worker serves.
    pub lanes: &'a BTreeMap<RegionId, LaneCapacity>,
    pub lease: Duration,
    /// Maximum number of concurrent copies into a region over all processes. Regions without an entry are not limited.
    pub limits: &'a BTreeMap<RegionId, usize>,
    /// Random number that selects the region to serve.
    pub draw: usize,
}

/// Number of further images that a worker accepts for a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneCapacity {
    /// Number of images that may be claimed from the region's own queue.
    pub primary: usize,
    /// Total number of images, including those that are claimed together with another region's; at least `primary`.
    pub total: usize,
}

/// Replicas of one image that are claimed together.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Claim {
    /// The image; `None` if it was removed after a call for it was accepted.
    pub image: Option<Image>,
    pub id: ImageId,
    /// The claimed replicas.
    pub regions: Vec<ClaimedRegion>,
    /// Regions in which the image is available.
    pub available: Vec<RegionId>,
}

/// A claimed replica.
#[derive(Debug, Clone)]
pub struct ClaimedRegion {
    /// The destination.
    pub region: RegionId,
    /// Fence that every write about the replica must carry.
    pub fence: u64,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// Number of earlier attempts that failed.
    pub faults: u32,
    /// Whether a part of the replica was found damaged.
    pub suspect: bool,
    /// Whether content that another program wrote under the image's name may be replaced, because a waiting call allows
    /// it.
    pub overwrite: bool,
    /// Synchronizations that wait for the replica: at most 8, oldest first.
    pub requests: Vec<RequestId>,
    /// Trace contexts of the calls that created these synchronizations.
    pub traces: Vec<TraceContext>,
}

impl Db {
    /// Claims due replicas of some images; returns none if nothing is due.
    pub async fn replica_claim(&self, request: ClaimRequest<'_>) -> Result<Vec<Claim>> {
        if request.lanes.values().all(|lane| lane.primary == 0) {
            return Ok(Vec::new());
        }
        if !request.limits.is_empty() {
            self.create_region_locks().await?;
        }
        let claims = self.claim(request).await?;
        if !claims.is_empty() {
            self.0.signals.notify_changed();
        }
        Ok(claims)
    }

    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Vec<Claim>> {
        // Checks on the read pool first, which does not delay writers: usually nothing is due.
        let free = request.lanes.iter().filter(|(_, lane)| lane.primary > 0).map(|(region, _)| region);
        let due = self.0.connections.read(async |reader| regions_due(&reader, free).await).await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        self.0.connections.transaction(async |txn| claim(&txn, request, &due).await).await
    }
}

async fn claim(txn: &Transaction, request: ClaimRequest<'_>, due: &[RegionId]) -> Result<Vec<Claim>> {
    let mut capacity = Capacity::measure(txn, request.limits, due).await?;
    capacity.restrict(request.lanes.iter().map(|(region, lane)| (region, lane.total)));
    let due: Vec<&RegionId> = due.iter().filter(|region| capacity.of(region) > 0).collect();
    if due.is_empty() {
        return Ok(Vec::new());
    }
    let primary = due[request.draw % due.len()];

    let limit = request.lanes.get(primary).map_or(0, |lane| lane.primary).min(capacity.of(primary));
    let images = lock_head(txn, primary, limit).await?;
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let mut claimed: BTreeMap<ImageId, Vec<ClaimedRegion>> = BTreeMap::new();
    let mut rows = Vec::new();
    for replica::TimedRow { row, now } in lock_due(txn, &images).await? {
        let (image, region) = row.key();
        if !request.lanes.contains_key(&region) || capacity.of(&region) == 0 {
            continue;
        }
        let claim = Event::Claim { owner: request.owner.clone(), lease: request.lease };
        let Ok(replica) = row.replica()?.apply(claim, now) else { continue };
        capacity.reserve(&region);
        rows.push(row.successor(&image, &region, &replica));
        claimed.entry(image).or_default().push(ClaimedRegion {
            region,
            fence: replica.fence,
            attempt: replica.attempt,
            faults: replica.faults,
            suspect: replica.suspect,
            overwrite: false,
            requests: Vec::new(),
            traces: Vec::new(),
        });
    }
    replica::save(txn, rows).await?;
    add_requests(txn, &mut claimed).await?;
    add_images(txn, claimed).await
}

/// Returns the regions that have due replicas.
async fn regions_due<'a>(reader: &Reader, regions: impl Iterator<Item = &'a RegionId>) -> Result<Vec<RegionId>> {
    #[derive(FromQueryResult)]
    struct Row {
        region_id: Text<RegionId>,
    }
    let rows: Vec<Row> = Sql::new(reader)
        .text("SELECT w.region_id FROM ")
        .rows(region_rows("region_id", regions))
        .text(" WHERE EXISTS (SELECT 1 FROM replica AS r WHERE r.region_id = w.region_id AND r.due_at <= ")
        .now()
        .text(")")
        .all(reader)
        .await?;
    Ok(rows.into_iter().map(|row| row.region_id.0).collect())
}

/// Locks the oldest replicas of a region's queue. Returns their images.
async fn lock_head(txn: &Transaction, region: &RegionId, limit: usize) -> Result<Vec<String>> {
    #[derive(FromQueryResult)]
    struct Row {
        image_id: String,
    }
    let rows: Vec<Row> = Sql::new(txn)
        .text("SELECT r.image_id FROM replica AS r WHERE r.region_id = ")
        .value(region.as_str())
        .text(" AND r.due_at <= ")
        .now()
        .text(" ORDER BY r.due_at LIMIT ")
        .value(i64::try_from(limit).unwrap_or(i64::MAX))
        .lock_skip_locked("r")
        .all(txn)
        .await?;
    Ok(rows.into_iter().map(|row| row.image_id).collect())
}

/// Locks every due replica of some images.
async fn lock_due(txn: &Transaction, images: &[String]) -> Result<Vec<replica::TimedRow>> {
    let sql = replica::select_timed(txn)
        .rows(Rows::new([("id", ColumnKind::Name)], images.iter().map(|image| [image.as_str().into()])))
        .join()
        .text("replica AS r ON r.image_id = w.id WHERE r.due_at <= ")
        .now()
        .lock_skip_locked("r");
    Ok(sql.all(txn).await?)
}

/// Adds the synchronizations that wait for the claimed replicas.
async fn add_requests(txn: &Transaction, claimed: &mut BTreeMap<ImageId, Vec<ClaimedRegion>>) -> Result<()> {
    let keys: Vec<replica::Key> = claimed
        .iter()
        .flat_map(|(image, regions)| regions.iter().map(|claimed| (image.clone(), claimed.region.clone())))
        .collect();
    for waiting in settlement::waiting(txn, &keys, false).await? {
        let regions = claimed.get_mut(&waiting.image).into_iter().flatten();
        for region in regions.filter(|claimed| claimed.region == waiting.region) {
            region.overwrite |= waiting.overwrite;
            if region.requests.len() < MAX_LINKS {
                region.requests.push(waiting.request_id.into());
                region.traces.extend(waiting.trace.clone());
            }
        }
    }
    Ok(())
}

/// Adds the images, and the regions in which they are available.
async fn add_images(txn: &Transaction, claimed: BTreeMap<ImageId, Vec<ClaimedRegion>>) -> Result<Vec<Claim>> {
    let ids = || claimed.keys().map(|image| image.as_str());
    let rows = entity::image::Entity::find().filter(entity::image::Column::Id.is_in(ids())).all(txn).await?;
    let mut images = BTreeMap::new();
    for row in rows {
        let image = Image::from(row);
        images.insert(image.id.clone(), image);
    }
    let replicas: Vec<(Text<ImageId>, Text<RegionId>)> = entity::replica::Entity::find()
        .select_only()
        .columns([entity::replica::Column::ImageId, entity::replica::Column::RegionId])
        .filter(entity::replica::Column::ImageId.is_in(ids()))
        .filter(entity::replica::Column::State.eq(RegionStatus::Available.as_str()))
        .into_tuple()
        .all(txn)
        .await?;
    let mut available: BTreeMap<ImageId, Vec<RegionId>> = BTreeMap::new();
    for (image, region) in replicas {
        available.entry(image.0).or_default().push(region.0);
    }
    let claims = claimed.into_iter().map(|(id, regions)| Claim {
        image: images.remove(&id),
        available: available.remove(&id).unwrap_or_default(),
        id,
        regions,
    });
    Ok(claims.collect())
}
