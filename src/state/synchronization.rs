//! Synchronizations: what callers see of them, how they end, how they are canceled.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait as _,
    sea_query::{Expr, ExprTrait as _},
};
use tracing::instrument;
use uuid::Uuid;

use super::{
    Error, Result, State, TraceContext,
    database::{Reader, Transaction},
    entity,
    replica::{self, Lock, Locked},
    sql::{Kind, Rows, Sql},
};
use crate::domain::{
    Event, ImageId, Progress, RegionId, RegionStatus, RegionView, Replica, RequestId, State as ReplicaState,
    Synchronization, SynchronizationState, Timestamp, Warnings,
};
use entity::{
    parse, synchronization as sync, synchronization_target as target,
    {replica::Column as ReplicaColumn, replica::Entity as ReplicaEntity},
};

/// How many synchronizations one query reads at most.
const CHUNK: usize = 500;

/// Which synchronizations to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of this image.
    pub image: Option<ImageId>,
    /// Only those in this state.
    pub state: Option<SynchronizationState>,
}

/// A page of synchronizations.
#[derive(Debug, Clone)]
pub struct SynchronizationPage {
    /// The synchronizations, newest first.
    pub synchronizations: Vec<Synchronization>,
    /// Whether there are older ones.
    pub more: bool,
}

impl State {
    /// Where a synchronization stands.
    #[instrument(name = "SELECT synchronization", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "synchronization"))]
    pub async fn synchronization_get(&self, id: RequestId) -> Result<Synchronization> {
        self.synchronizations(&[id]).await?.pop().ok_or(Error::SynchronizationNotFound(id))
    }

    /// The synchronizations that are older than `before`, `limit` at most.
    #[instrument(name = "SELECT synchronization", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "synchronization"))]
    pub async fn synchronization_list(
        &self,
        filter: &Filter,
        before: Option<RequestId>,
        limit: u64,
    ) -> Result<SynchronizationPage> {
        let list = async |db: Reader| {
            let db = &db;
            let page = |state: Option<Expr>| {
                let query = sync::Entity::find()
                    .apply_if(filter.image.as_ref(), |q, image| q.filter(sync::Column::ImageId.eq(image.as_str())))
                    .apply_if(state, |q, state| q.filter(state))
                    .apply_if(before, |q, before| q.filter(sync::Column::RequestId.lt(before.as_uuid())))
                    .order_by_desc(sync::Column::RequestId)
                    .limit(limit + 1);
                query.all(db)
            };
            let mut rows = match (filter.state, &filter.image) {
                // Those of an image that run are in one index, and those that have ended in another.
                (None, Some(_)) => {
                    let mut rows = page(Some(in_state(SynchronizationState::Running))).await?;
                    rows.extend(page(Some(ended())).await?);
                    rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.request_id));
                    rows
                }
                (Some(state), Some(_)) if state.is_terminal() => page(Some(in_state(state).and(ended()))).await?,
                (state, _) => page(state.map(in_state)).await?,
            };
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let more = rows.len() > limit;
            rows.truncate(limit);
            Ok(SynchronizationPage { synchronizations: assemble(db, rows).await?, more })
        };
        self.0.db.read(list).await
    }

    /// The synchronizations with these ids, those that there are.
    pub(super) async fn synchronizations(&self, ids: &[RequestId]) -> Result<Vec<Synchronization>> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
            let read = async |db: Reader| {
                let db = &db;
                let rows = sync::Entity::find().filter(sync::Column::RequestId.is_in(ids)).all(db).await?;
                assemble(db, rows).await
            };
            found.extend(self.0.db.read(read).await?);
        }
        Ok(found)
    }

    /// Cancels what a synchronization has not finished. A copy that another running synchronization waits for goes on.
    #[instrument(name = "UPDATE synchronization", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "UPDATE", db.collection.name = "synchronization"))]
    pub async fn synchronization_cancel(&self, id: RequestId) -> Result<Synchronization> {
        self.0.db.transaction(async |txn| cancel(&txn, id).await).await?;
        self.0.signals.changed();
        self.synchronization_get(id).await
    }
}

async fn cancel(txn: &Transaction, id: RequestId) -> Result<()> {
    // Its image and its targets never change, so that the replicas can be locked first, as everybody does.
    let row = sync::Entity::find_by_id(id.as_uuid()).one(txn).await?;
    let row = row.ok_or(Error::SynchronizationNotFound(id))?;
    let image: ImageId = parse("synchronization.image_id", &row.image_id)?;
    let keys: Vec<replica::Key> = targets(&row.targets)?.into_iter().map(|region| (image.clone(), region)).collect();
    let Locked { rows, now } = replica::lock(txn, keys.clone(), Lock::Change).await?;
    let waiting = waiting(txn, &keys, true).await?;
    let mut saved = Vec::new();
    let mut ended = Vec::new();
    for (image, region) in &keys {
        let mut theirs = waiting.iter().filter(|w| w.region == *region);
        let Some(ours) = theirs.clone().find(|w| w.request_id == row.request_id) else { continue };
        let alone = theirs.all(|w| w.request_id == row.request_id);
        let before = rows.get(&(image.clone(), region.clone()));
        let replica = before.map(|row| row.replica()).transpose()?;
        let canceled = replica.as_ref().filter(|_| alone).and_then(|r| r.apply(Event::Cancel, now).ok());
        if let (Some(before), Some(replica)) = (before, &canceled) {
            saved.push(before.followed_by(image, region, replica));
        }
        // Where it was not canceled, another synchronization waits for the copy.
        let seen = canceled.or(replica).map_or_else(|| not_started(region), |replica| view(region, &replica));
        let view = RegionView {
            status: RegionStatus::Canceled,
            verification: None,
            next_attempt_at: None,
            finished_at: Some(now),
            warnings: Warnings::default(),
            ..seen
        };
        ended.push((ours.clone(), view));
    }
    replica::save(txn, saved).await?;
    end(txn, ended, now).await
}

/// A running synchronization that waits for a replica.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub request_id: Uuid,
    pub image: ImageId,
    pub region: RegionId,
    /// How many of its regions have not ended.
    open: i64,
    pub trace: Option<TraceContext>,
    /// Whether it lets the copy replace what others have put in the image's place.
    pub overwrite: bool,
}

#[derive(FromQueryResult)]
struct WaitingRow {
    request_id: Uuid,
    image_id: String,
    region_id: String,
    targets: String,
    open: i64,
    traceparent: Option<String>,
    tracestate: Option<String>,
    overwrite: Option<i64>,
    ended: Option<String>,
}

/// The running synchronizations that wait for some replicas, oldest first; locked, if they are to be changed. Who locks them has
/// locked the replicas before: then nobody begins or ceases to wait for these meanwhile.
pub(super) async fn waiting(txn: &Transaction, replicas: &[replica::Key], lock: bool) -> Result<Vec<Waiting>> {
    if replicas.is_empty() {
        return Ok(Vec::new());
    }
    // In one order for all, as far as rows are locked in the order in which they are found.
    let replicas: BTreeSet<&replica::Key> = replicas.iter().collect();
    let sql = Sql::on(txn)
        .text(
            "SELECT s.request_id, s.image_id, w.region_id, s.targets, s.open, s.traceparent, s.tracestate, \
             s.overwrite, t.region_id AS ended FROM ",
        )
        .rows(replica::handed(replicas))
        .join()
        .text(
            "synchronization AS s ON s.image_id = w.image_id AND s.state = 'RUNNING' \
             LEFT JOIN synchronization_target AS t ON t.request_id = s.request_id AND t.region_id = w.region_id \
             ORDER BY s.request_id",
        );
    let read: Vec<WaitingRow> = if lock { sql.lock("s") } else { sql }.all(txn).await?;
    let waits = |row: &WaitingRow| row.ended.is_none() && row.targets.split(',').any(|target| target == row.region_id);
    let waiting = read.into_iter().filter(waits).map(|row| {
        Ok(Waiting {
            request_id: row.request_id,
            image: parse("synchronization.image_id", &row.image_id)?,
            region: parse("synchronization.targets", &row.region_id)?,
            open: row.open,
            overwrite: row.overwrite.is_some(),
            trace: row.traceparent.map(|parent| TraceContext { parent, state: row.tracestate }),
        })
    });
    waiting.collect()
}

/// Writes the ends of replicas, whose rows are locked, down at every synchronization that waits for them. However many do, the
/// statements are the same few.
pub(super) async fn settle(txn: &Transaction, ended: &[(ImageId, RegionView)], now: Timestamp) -> Result<()> {
    let keys: Vec<replica::Key> = ended.iter().map(|(image, view)| (image.clone(), view.region.clone())).collect();
    let views: HashMap<replica::Key, &RegionView> =
        keys.iter().cloned().zip(ended.iter().map(|(_, view)| view)).collect();
    let waiting = waiting(txn, &keys, true).await?;
    let settled = waiting.into_iter().filter_map(|w| {
        let view = (*views.get(&(w.image.clone(), w.region.clone()))?).clone();
        Some((w, view))
    });
    end(txn, settled.collect(), now).await
}

/// Writes down at some synchronizations how regions of theirs have ended, and ends those that wait for no other.
async fn end(txn: &Transaction, ended: Vec<(Waiting, RegionView)>, now: Timestamp) -> Result<()> {
    if ended.is_empty() {
        return Ok(());
    }
    let mut open: BTreeMap<Uuid, (i64, Vec<RegionStatus>)> = BTreeMap::new();
    for (waiting, view) in &ended {
        let (open, statuses) = open.entry(waiting.request_id).or_insert((waiting.open, Vec::new()));
        *open -= 1;
        statuses.push(view.status);
    }
    target::insert(txn, ended.iter().map(|(waiting, view)| target::Model::of(waiting.request_id, view))).await?;
    let done: Vec<Uuid> = open.iter().filter(|(_, (open, _))| *open == 0).map(|(id, _)| *id).collect();
    for (id, status) in statuses(txn, &done).await? {
        if let Some((_, statuses)) = open.get_mut(&id) {
            statuses.push(parse("synchronization_target.status", &status)?);
        }
    }
    let rows = open.into_iter().map(|(id, (open, statuses))| {
        let ended = open == 0;
        let state = if ended { SynchronizationState::of(statuses) } else { SynchronizationState::Running };
        [id.into(), open.into(), state.as_str().into(), ended.then_some(now.as_millis()).into()]
    });
    let columns =
        [("request_id", Kind::Uuid), ("open", Kind::Number), ("state", Kind::Name), ("finished_at", Kind::MaybeNumber)];
    let becomes = [("open", "w.open"), ("state", "w.state"), ("finished_at", "w.finished_at")];
    Sql::on(txn)
        .update("synchronization", &becomes, Rows::new(columns, rows), "t.request_id = w.request_id")
        .execute(txn)
        .await?;
    Ok(())
}

/// The states in which the regions of some synchronizations have ended.
async fn statuses(txn: &Transaction, requests: &[Uuid]) -> Result<Vec<(Uuid, String)>> {
    #[derive(FromQueryResult)]
    struct Row {
        request_id: Uuid,
        status: String,
    }
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Rows::new([("request_id", Kind::Uuid)], requests.iter().map(|id| [(*id).into()]));
    let sql = Sql::on(txn)
        .text("SELECT DISTINCT t.request_id, t.status FROM ")
        .rows(rows)
        .join()
        .text("synchronization_target AS t ON t.request_id = w.request_id");
    let read: Vec<Row> = sql.all(txn).await?;
    Ok(read.into_iter().map(|row| (row.request_id, row.status)).collect())
}

/// Whether a synchronization is in a state. The state stands in the text of the statement: by a value that is bound later, no
/// index of the rows in one state can be chosen.
fn in_state(state: SynchronizationState) -> Expr {
    Expr::cust(format!("synchronization.state = '{}'", state.as_str()))
}

/// Whether a synchronization has ended, in the words of the index of those.
fn ended() -> Expr {
    Expr::cust("synchronization.state <> 'RUNNING'")
}

/// Puts the synchronizations of some rows together: their regions that have ended, and the replicas of those that have not.
async fn assemble(db: &Reader, rows: Vec<sync::Model>) -> Result<Vec<Synchronization>> {
    let ids = rows.iter().map(|row| row.request_id);
    let mut ended: HashMap<(Uuid, String), RegionView> = HashMap::new();
    for row in target::Entity::find().filter(target::Column::RequestId.is_in(ids)).all(db).await? {
        let view = row.view()?;
        ended.insert((row.request_id, row.region_id), view);
    }
    let running: Vec<&str> = rows.iter().filter(|r| r.finished_at.is_none()).map(|r| r.image_id.as_str()).collect();
    let mut replicas: HashMap<(String, String), Replica> = HashMap::new();
    if !running.is_empty() {
        for row in ReplicaEntity::find().filter(ReplicaColumn::ImageId.is_in(running)).all(db).await? {
            let replica = row.replica()?;
            replicas.insert((row.image_id, row.region_id), replica);
        }
    }
    rows.into_iter()
        .map(|row| {
            let regions = targets(&row.targets)?.into_iter().map(|region| {
                let live = || replicas.get(&(row.image_id.clone(), region.to_string()));
                let ended = ended.remove(&(row.request_id, region.to_string()));
                ended.unwrap_or_else(|| live().map_or_else(|| not_started(&region), |r| view(&region, r)))
            });
            Ok(Synchronization {
                request_id: row.request_id.into(),
                image: parse("synchronization.image_id", &row.image_id)?,
                regions: regions.collect(),
                principal: row.principal,
                state: parse("synchronization.state", &row.state)?,
                created_at: Timestamp::from_millis(row.created_at),
                finished_at: row.finished_at.map(Timestamp::from_millis),
                trace_id: row.traceparent.as_deref().and_then(trace_id),
            })
        })
        .collect()
}

/// The trace that a header is of (W3C Trace Context, "traceparent").
fn trace_id(traceparent: &str) -> Option<String> {
    let id = traceparent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// The regions of the column `targets`.
fn targets(column: &str) -> Result<Vec<RegionId>> {
    column.split(',').filter(|name| !name.is_empty()).map(|name| Ok(parse("synchronization.targets", name)?)).collect()
}

/// A replica as callers see it.
pub(super) fn view(region: &RegionId, replica: &Replica) -> RegionView {
    let next_attempt_at = match &replica.state {
        ReplicaState::Pending { not_before, last: Some(_) } => Some(*not_before),
        _ => None,
    };
    RegionView {
        region: region.clone(),
        status: replica.status(),
        verification: replica.verification(),
        progress: replica.progress,
        attempt: replica.attempt,
        next_attempt_at,
        fault: replica.last_fault().cloned(),
        started_at: replica.started_at,
        finished_at: replica.finished_at,
        warnings: replica.warnings.clone(),
    }
}

/// A region whose replica's row was read a moment before it was written.
fn not_started(region: &RegionId) -> RegionView {
    RegionView {
        region: region.clone(),
        status: RegionStatus::Pending,
        verification: None,
        progress: Progress::default(),
        attempt: 0,
        next_attempt_at: None,
        fault: None,
        started_at: None,
        finished_at: None,
        warnings: Warnings::default(),
    }
}
