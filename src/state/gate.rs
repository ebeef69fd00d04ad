//! How many copies go into and out of regions, whichever processes carry them. Whoever counts them, to begin more, holds the region's
//! row of the table `gate` until these are written down.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{ConnectionTrait, FromQueryResult};

use super::{
    Result, State,
    database::{Session, Transaction},
    entity,
    sql::{Kind, Rows, Sql},
};
use crate::domain::{ImageId, RegionId, WorkerId};

/// A name that a statement returns.
#[derive(FromQueryResult)]
pub(super) struct Name {
    pub id: String,
}

impl State {
    /// Takes the right to be fed for some claimed replicas of an image: `(region, fence, the region that is to feed it)`. Returns
    /// those that may. A region that feeds as many as it may feeds no other, whichever processes carry them; `limits` names those for
    /// which that is limited.
    pub async fn replica_feed(
        &self,
        image: &ImageId,
        feeds: &[(RegionId, u64, RegionId)],
        limits: &BTreeMap<RegionId, usize>,
    ) -> Result<Vec<RegionId>> {
        self.open_gates().await?;
        self.0.db.transaction(async |txn| self.feed(&txn, image, feeds, limits).await).await
    }

    async fn feed(
        &self,
        txn: &Transaction,
        image: &ImageId,
        feeds: &[(RegionId, u64, RegionId)],
        limits: &BTreeMap<RegionId, usize>,
    ) -> Result<Vec<RegionId>> {
        let sources: BTreeSet<&RegionId> = feeds.iter().map(|(_, _, from)| from).collect();
        closed(txn, sources.iter().copied(), |sql| sql.lock("g")).await?;
        let mut fed: BTreeMap<RegionId, usize> = BTreeMap::new();
        for underway in underway(txn, self.0.regions.iter(), None).await? {
            if let Some(from) = underway.from {
                *fed.entry(from).or_default() += usize::try_from(underway.copies).unwrap_or(usize::MAX);
            }
        }
        let mut granted = Vec::new();
        let mut rows = Vec::new();
        for (region, fence, from) in feeds {
            let taken = fed.entry(from.clone()).or_default();
            if *taken < limits.get(from).copied().unwrap_or(usize::MAX) {
                *taken += 1;
                granted.push(region.clone());
                let fence = entity::signed(*fence);
                rows.push([image.as_str().into(), region.as_str().into(), fence.into(), from.as_str().into()]);
            }
        }
        if rows.is_empty() {
            return Ok(granted);
        }
        let columns =
            [("image_id", Kind::Name), ("region_id", Kind::Name), ("fence", Kind::Number), ("fed_from", Kind::Name)];
        let on = "t.image_id = w.image_id AND t.region_id = w.region_id AND t.fence = w.fence AND t.state = 'COPYING'";
        Sql::on(txn)
            .update("replica", &[("fed_from", "w.fed_from")], Rows::new(columns, rows), on)
            .execute(txn)
            .await?;
        Ok(granted)
    }

    /// The copies that are underway, whoever carries them.
    pub async fn copies_underway(&self, owner: &WorkerId) -> Result<Vec<Underway>> {
        self.0.db.read(async |db| underway(&db, self.0.regions.iter(), Some(owner)).await).await
    }

    /// Makes the rows that are locked while a region with a limit is claimed for. Once for the life of a process.
    pub(super) async fn open_gates(&self) -> Result<()> {
        if self.0.gates.initialized() {
            return Ok(());
        }
        let open = async |txn: Transaction| {
            let txn = &txn;
            Sql::on(txn)
                .text("INSERT INTO gate (region_id) SELECT w.region_id FROM ")
                .rows(names("region_id", self.0.regions.iter()))
                .text(" WHERE NOT EXISTS (SELECT 1 FROM gate AS g WHERE g.region_id = w.region_id)")
                .execute(txn)
                .await?;
            Ok(())
        };
        self.0.gates.get_or_try_init(|| self.0.db.transaction(open)).await.copied()
    }
}

/// Copies that are underway from one region to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underway {
    /// Where they go.
    pub to: RegionId,
    /// Where they come from, if that is written down.
    pub from: Option<RegionId>,
    /// Whether the one who asks carries them.
    pub ours: bool,
    /// How many.
    pub copies: u32,
}

/// The names of regions, to be handed to a statement.
pub(super) fn names<'a>(column: &'static str, regions: impl Iterator<Item = &'a RegionId>) -> Rows<1> {
    Rows::new([(column, Kind::Name)], regions.map(|region| [region.as_str().into()]))
}

/// The copies that are underway into some regions; `owner` is who asks.
async fn underway<'a>(
    db: &Session<impl ConnectionTrait + Send>,
    regions: impl Iterator<Item = &'a RegionId>,
    owner: Option<&WorkerId>,
) -> Result<Vec<Underway>> {
    #[derive(FromQueryResult)]
    struct Row {
        region_id: String,
        fed_from: Option<String>,
        lease_owner: Option<String>,
        copies: i64,
    }
    let read: Vec<Row> = Sql::on(db)
        .text("SELECT r.region_id, r.fed_from, r.lease_owner, COUNT(*) AS copies FROM ")
        .rows(names("id", regions))
        .join()
        .text("replica AS r ON r.region_id = w.id AND r.state = 'COPYING' AND r.due_at > ")
        .now()
        .text(" GROUP BY r.region_id, r.fed_from, r.lease_owner")
        .all(db)
        .await?;
    let read = read.into_iter().map(|row| {
        Ok(Underway {
            to: entity::parse("replica.region_id", &row.region_id)?,
            from: row.fed_from.map(|from| entity::parse("replica.fed_from", &from)).transpose()?,
            ours: owner.is_some_and(|owner| row.lease_owner.as_deref() == Some(&*owner.0)),
            copies: u32::try_from(row.copies).unwrap_or(u32::MAX),
        })
    });
    read.collect()
}

/// How many copies more each region may take. Regions without a limit take any number.
pub(super) struct Room(BTreeMap<RegionId, usize>);

impl Room {
    /// Counts what is being copied into those of the regions that have a limit, and keeps others from claiming for these meanwhile.
    /// A region for which somebody else is just claiming has no room.
    pub async fn measure(txn: &Transaction, limits: &BTreeMap<RegionId, usize>, due: &[RegionId]) -> Result<Self> {
        let limited: Vec<&RegionId> = due.iter().filter(|region| limits.contains_key(*region)).collect();
        if limited.is_empty() {
            // What comes along of the same images may be limited all the same.
            return Ok(Self(limits.keys().map(|region| (region.clone(), 0)).collect()));
        }
        let ours = closed(txn, limited.iter().copied(), |sql| sql.lock_free("g")).await?;
        let underway = underway(txn, limited.iter().copied(), None).await?;
        let mut room: BTreeMap<RegionId, usize> = limits.keys().map(|region| (region.clone(), 0)).collect();
        for region in ours {
            let copies: u32 = underway.iter().filter(|underway| underway.to == region).map(|u| u.copies).sum();
            let limit = limits.get(&region).copied().unwrap_or(usize::MAX);
            room.insert(region, limit.saturating_sub(usize::try_from(copies).unwrap_or(usize::MAX)));
        }
        Ok(Self(room))
    }

    /// Gives regions no more room than that.
    pub fn narrow<'a>(&mut self, rooms: impl Iterator<Item = (&'a RegionId, usize)>) {
        for (region, most) in rooms {
            let room = self.of(region).min(most);
            self.0.insert(region.clone(), room);
        }
    }

    pub fn of(&self, region: &RegionId) -> usize {
        self.0.get(region).copied().unwrap_or(usize::MAX)
    }

    pub fn take(&mut self, region: &RegionId) {
        if let Some(room) = self.0.get_mut(region) {
            *room = room.saturating_sub(1);
        }
    }
}

/// Locks the gates of some regions, in the order of their names. Returns those that were locked.
async fn closed<'a>(
    txn: &Transaction,
    regions: impl Iterator<Item = &'a RegionId>,
    lock: impl FnOnce(Sql) -> Sql,
) -> Result<Vec<RegionId>> {
    let sql = Sql::on(txn)
        .text("SELECT g.region_id AS id FROM ")
        .rows(names("id", regions))
        .join()
        .text("gate AS g ON g.region_id = w.id ORDER BY g.region_id");
    let gates: Vec<Name> = lock(sql).all(txn).await?;
    gates.into_iter().map(|gate| Ok(entity::parse("gate.region_id", &gate.id)?)).collect()
}
