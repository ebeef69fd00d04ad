//! Claiming: which replicas a worker gets.
//!
//! Every region has a queue of its own, the index `replica_due_in_region`, oldest first. A claim serves the head of one queue, drawn
//! from those in which something is due, so that no region waits for another, however long its queue is; whatever else of the same
//! images is due comes along, so that their source is read once for all. Rows that others are just claiming are left to them.

use std::collections::BTreeMap;

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::{
    Result, State, TraceContext,
    database::{Reader, Transaction},
    entity,
    gate::{Name, Room, names},
    replica,
    sql::{Kind, Rows, Sql},
    synchronization,
};
use crate::domain::{Event, Image, ImageId, RegionId, RegionStatus, RequestId, WorkerId};

/// How many of the synchronizations that wait for a replica its copy is linked to at most.
const LINKS: usize = 8;

/// What a worker wants to claim.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The worker.
    pub owner: &'a WorkerId,
    /// The regions that it serves, and how many images more it takes for each.
    pub lanes: &'a BTreeMap<RegionId, Lane>,
    /// How long its leases last.
    pub lease: std::time::Duration,
    /// How many copies may go into a region at the same time, whoever carries them. Those that are not named have no limit.
    pub limits: &'a BTreeMap<RegionId, usize>,
    /// Draws the region that is served: any number.
    pub draw: usize,
}

/// How many images more a worker takes for a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// As the region whose queue is served.
    pub lead: usize,
    /// As one for which an image is due that is claimed for another region; not fewer than `lead`.
    pub along: usize,
}

/// Replicas of one image, claimed together, so that the source is read once for all.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The image; nothing if it was removed while a call for it was accepted.
    pub image: Option<Image>,
    /// Its id.
    pub id: ImageId,
    /// Its regions that are due.
    pub regions: Vec<ClaimedRegion>,
    /// The regions that have got it already.
    pub available: Vec<RegionId>,
}

/// One claimed replica.
#[derive(Debug, Clone)]
pub struct ClaimedRegion {
    /// The region.
    pub region: RegionId,
    /// What every write about it must carry.
    pub fence: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How many attempts before ended with a fault.
    pub faults: u32,
    /// Whether something of it was found damaged.
    pub suspect: bool,
    /// Whether it may replace what others have put in the image's place: one of the calls that wait for it says so.
    pub overwrite: bool,
    /// The synchronizations that wait for it.
    pub requests: Vec<RequestId>,
    /// The traces of the calls that asked for those.
    pub traces: Vec<TraceContext>,
}

impl State {
    /// Claims what is due of some images; nothing if nothing is due.
    pub async fn replica_claim(&self, order: Order<'_>) -> Result<Vec<Claim>> {
        if order.lanes.values().all(|lane| lane.lead == 0) {
            return Ok(Vec::new());
        }
        if !order.limits.is_empty() {
            self.open_gates().await?;
        }
        let claims = self.claim(order).await?;
        if !claims.is_empty() {
            self.0.signals.changed();
        }
        Ok(claims)
    }

    async fn claim(&self, order: Order<'_>) -> Result<Vec<Claim>> {
        // Looking first where reading costs the writers nothing: mostly, nothing is due.
        let free = order.lanes.iter().filter(|(_, lane)| lane.lead > 0).map(|(region, _)| region);
        let due = self.0.db.read(async |db| regions_due(&db, free).await).await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        self.0.db.transaction(async |txn| claim(&txn, order, &due).await).await
    }
}

async fn claim(txn: &Transaction, order: Order<'_>, due: &[RegionId]) -> Result<Vec<Claim>> {
    let mut room = Room::measure(txn, order.limits, due).await?;
    room.narrow(order.lanes.iter().map(|(region, lane)| (region, lane.along)));
    let due: Vec<&RegionId> = due.iter().filter(|region| room.of(region) > 0).collect();
    if due.is_empty() {
        return Ok(Vec::new());
    }
    let lead = due[order.draw % due.len()];

    let images = order.lanes.get(lead).map_or(0, |lane| lane.lead).min(room.of(lead));
    let images = head(txn, lead, images).await?;
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let mut claimed: BTreeMap<ImageId, Vec<ClaimedRegion>> = BTreeMap::new();
    let mut rows = Vec::new();
    for replica::Timed { row, now } in due_of(txn, &images).await? {
        let (image, region) = row.key()?;
        if !order.lanes.contains_key(&region) || room.of(&region) == 0 {
            continue;
        }
        let claim = Event::Claim { owner: order.owner.clone(), lease: order.lease };
        let Ok(replica) = row.replica()?.apply(claim, now) else { continue };
        room.take(&region);
        rows.push(row.followed_by(&image, &region, &replica));
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
    describe(txn, claimed).await
}

/// The regions in which something is due.
async fn regions_due<'a>(db: &Reader, regions: impl Iterator<Item = &'a RegionId>) -> Result<Vec<RegionId>> {
    let found: Vec<Name> = Sql::on(db)
        .text("SELECT w.id FROM ")
        .rows(names("id", regions))
        .text(" WHERE EXISTS (SELECT 1 FROM replica AS r WHERE r.region_id = w.id AND r.due_at <= ")
        .now()
        .text(")")
        .all(db)
        .await?;
    found.into_iter().map(|name| Ok(entity::parse("replica.region_id", &name.id)?)).collect()
}

/// The images that have waited longest in a region's queue, locked there.
async fn head(txn: &Transaction, region: &RegionId, images: usize) -> Result<Vec<String>> {
    let most = i64::try_from(images).unwrap_or(i64::MAX);
    let found: Vec<Name> = Sql::on(txn)
        .text("SELECT r.image_id AS id FROM replica AS r WHERE r.region_id = ")
        .value(region.as_str())
        .text(" AND r.due_at <= ")
        .now()
        .text(" ORDER BY r.due_at LIMIT ")
        .value(most)
        .lock_free("r")
        .all(txn)
        .await?;
    Ok(found.into_iter().map(|name| name.id).collect())
}

/// Whatever is due of some images, locked.
async fn due_of(txn: &Transaction, images: &[String]) -> Result<Vec<replica::Timed>> {
    let sql = replica::reading(txn)
        .rows(Rows::new([("id", Kind::Name)], images.iter().map(|image| [image.as_str().into()])))
        .join()
        .text("replica AS r ON r.image_id = w.id WHERE r.due_at <= ")
        .now()
        .lock_free("r");
    Ok(sql.all(txn).await?)
}

/// What a worker must know about what it has claimed.
async fn describe(txn: &Transaction, mut claimed: BTreeMap<ImageId, Vec<ClaimedRegion>>) -> Result<Vec<Claim>> {
    let keys: Vec<replica::Key> = claimed
        .iter()
        .flat_map(|(image, regions)| regions.iter().map(|claimed| (image.clone(), claimed.region.clone())))
        .collect();
    for waiting in synchronization::waiting(txn, &keys, false).await? {
        let regions = claimed.get_mut(&waiting.image).into_iter().flatten();
        for region in regions.filter(|claimed| claimed.region == waiting.region) {
            region.overwrite |= waiting.overwrite;
            if region.requests.len() < LINKS {
                region.requests.push(waiting.request_id.into());
                region.traces.extend(waiting.trace.clone());
            }
        }
    }
    let names = || claimed.keys().map(|image| image.as_str());
    let rows = entity::image::Entity::find().filter(entity::image::Column::Id.is_in(names())).all(txn).await?;
    let mut images = BTreeMap::new();
    for row in rows {
        let image = Image::try_from(row)?;
        images.insert(image.id.clone(), image);
    }
    let there: Vec<(String, String)> = entity::replica::Entity::find()
        .select_only()
        .columns([entity::replica::Column::ImageId, entity::replica::Column::RegionId])
        .filter(entity::replica::Column::ImageId.is_in(names()))
        .filter(entity::replica::Column::State.eq(RegionStatus::Available.as_str()))
        .into_tuple()
        .all(txn)
        .await?;
    let mut available: BTreeMap<String, Vec<RegionId>> = BTreeMap::new();
    for (image, region) in there {
        available.entry(image).or_default().push(entity::parse("replica.region_id", &region)?);
    }
    Ok(claimed
        .into_iter()
        .map(|(id, regions)| Claim {
            image: images.remove(&id),
            available: available.remove(id.as_str()).unwrap_or_default(),
            id,
            regions,
        })
        .collect())
}
