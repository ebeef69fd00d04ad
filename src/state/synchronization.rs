//! Synchronizations: what callers see of them, how they end, how they are canceled.

use std::collections::{BTreeMap, HashMap};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, IntoActiveModel as _, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait as _,
    sea_query::{Expr, ExprTrait as _, Query},
};
use tracing::instrument;
use uuid::Uuid;

use super::{Error, Result, State, TraceContext, entity, replica};
use crate::domain::{
    Event, ImageId, Progress, RegionId, RegionStatus, RegionView, Replica, RequestId, Stale, State as ReplicaState,
    Synchronization, SynchronizationState, Timestamp,
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
    #[instrument(name = "SELECT synchronization", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn synchronization_get(&self, id: RequestId) -> Result<Synchronization> {
        self.synchronizations(&[id]).await?.pop().ok_or(Error::SynchronizationNotFound(id))
    }

    /// The synchronizations that are older than `before`, `limit` at most.
    #[instrument(name = "SELECT synchronization", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn synchronization_list(
        &self,
        filter: &Filter,
        before: Option<RequestId>,
        limit: u64,
    ) -> Result<SynchronizationPage> {
        let db = &self.0.read;
        let query = sync::Entity::find()
            .apply_if(filter.image.as_ref(), |q, image| q.filter(sync::Column::ImageId.eq(image.as_str())))
            .apply_if(filter.state, |q, state| q.filter(in_state(state)))
            .apply_if(before, |q, before| q.filter(sync::Column::RequestId.lt(before.as_uuid())))
            .order_by_desc(sync::Column::RequestId)
            .limit(limit + 1);
        let mut rows = query.all(db).await?;
        let more = rows.len() as u64 > limit;
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(SynchronizationPage { synchronizations: assemble(db, rows).await?, more })
    }

    /// The synchronizations with these ids, those that there are.
    pub(super) async fn synchronizations(&self, ids: &[RequestId]) -> Result<Vec<Synchronization>> {
        let db = &self.0.read;
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let ids = ids.iter().map(|id| id.as_uuid());
            let rows = sync::Entity::find().filter(sync::Column::RequestId.is_in(ids)).all(db).await?;
            found.extend(assemble(db, rows).await?);
        }
        Ok(found)
    }

    /// Cancels what a synchronization has not finished. A copy that another running synchronization waits for goes on.
    #[instrument(name = "UPDATE synchronization", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn synchronization_cancel(&self, id: RequestId) -> Result<Synchronization> {
        let now = self.0.clock.now();
        let txn = self.write().await?;
        let row = sync::Entity::find_by_id(id.as_uuid()).one(&txn).await?;
        let row = row.ok_or(Error::SynchronizationNotFound(id))?;
        let image: ImageId = parse("synchronization.image_id", &row.image_id)?;
        for region in targets(&row.targets)? {
            let waiting = waiting(&txn, &image, &region).await?;
            if !waiting.iter().any(|w| w.request_id == row.request_id) {
                continue;
            }
            let alone = waiting.len() == 1;
            let canceled =
                if alone { replica::apply(&txn, &image, &region, Event::Cancel, now).await? } else { Err(Stale) };
            let seen = match canceled {
                Ok(replica) => view(&region, &replica),
                // The copy goes on for somebody else.
                Err(Stale) => {
                    let key = (image.to_string(), region.to_string());
                    let replica = ReplicaEntity::find_by_id(key).one(&txn).await?.map(|r| r.replica()).transpose()?;
                    replica.map_or_else(|| not_started(&region), |replica| view(&region, &replica))
                }
            };
            let ended =
                RegionView { status: RegionStatus::Canceled, next_attempt_at: None, finished_at: Some(now), ..seen };
            end(&txn, &[row.request_id], &ended, now).await?;
        }
        txn.commit().await?;
        self.0.changed.raise();
        self.synchronization_get(id).await
    }
}

/// A running synchronization that waits for a replica.
struct Waiting {
    request_id: Uuid,
    trace: Option<TraceContext>,
}

/// The running synchronizations that wait for a replica, oldest first.
async fn waiting(txn: &DatabaseTransaction, image: &ImageId, region: &RegionId) -> Result<Vec<Waiting>> {
    let ended = Query::select()
        .column(target::Column::RequestId)
        .from(target::Entity)
        .and_where(Expr::col(target::Column::RegionId).eq(region.as_str()))
        .and_where(Expr::col(target::Column::RequestId).in_subquery(running_of(image)))
        .take();
    let rows: Vec<(Uuid, String, Option<String>, Option<String>)> = sync::Entity::find()
        .select_only()
        .columns([sync::Column::RequestId, sync::Column::Targets, sync::Column::Traceparent, sync::Column::Tracestate])
        .filter(sync::Column::ImageId.eq(image.as_str()))
        .filter(in_state(SynchronizationState::Running))
        .filter(sync::Column::RequestId.not_in_subquery(ended))
        .order_by_asc(sync::Column::RequestId)
        .into_tuple()
        .all(txn)
        .await?;
    let rows = rows.into_iter().filter(|(_, targets, ..)| targets.split(',').any(|target| target == region.as_str()));
    let waiting = rows.map(|(request_id, _, parent, state)| Waiting {
        request_id,
        trace: parent.map(|parent| TraceContext { parent, state }),
    });
    Ok(waiting.collect())
}

/// Writes the end of a replica down at every synchronization that waits for it. However many do, the statements are the same
/// few.
pub(super) async fn settle(
    txn: &DatabaseTransaction,
    image: &ImageId,
    region: &RegionId,
    replica: &Replica,
    now: Timestamp,
) -> Result<()> {
    let requests: Vec<Uuid> = waiting(txn, image, region).await?.into_iter().map(|w| w.request_id).collect();
    end(txn, &requests, &view(region, replica), now).await
}

/// Writes down at some synchronizations how a region has ended, and ends those that wait for no other.
async fn end(txn: &DatabaseTransaction, requests: &[Uuid], view: &RegionView, now: Timestamp) -> Result<()> {
    for requests in requests.chunks(CHUNK) {
        let rows = requests.iter().map(|&request| target::Model::of(request, view).into_active_model());
        target::Entity::insert_many(rows).exec_without_returning(txn).await?;
        sync::Entity::update_many()
            .col_expr(sync::Column::Open, Expr::col(sync::Column::Open).sub(1))
            .filter(sync::Column::RequestId.is_in(requests.iter().copied()))
            .exec(txn)
            .await?;
        finish(txn, requests, now).await?;
    }
    Ok(())
}

/// Ends those of the synchronizations whose regions have all ended.
async fn finish(txn: &DatabaseTransaction, requests: &[Uuid], now: Timestamp) -> Result<()> {
    let done = Query::select()
        .column(sync::Column::RequestId)
        .from(sync::Entity)
        .and_where(Expr::col(sync::Column::RequestId).is_in(requests.iter().copied()))
        .and_where(Expr::col(sync::Column::Open).eq(0))
        .take();
    let outcomes: Vec<(Uuid, String)> = target::Entity::find()
        .select_only()
        .columns([target::Column::RequestId, target::Column::Status])
        .filter(target::Column::RequestId.in_subquery(done))
        .distinct()
        .into_tuple()
        .all(txn)
        .await?;
    let mut of_request: BTreeMap<Uuid, Vec<RegionStatus>> = BTreeMap::new();
    for (request, status) in outcomes {
        of_request.entry(request).or_default().push(parse("synchronization_target.status", &status)?);
    }
    let mut ended: HashMap<SynchronizationState, Vec<Uuid>> = HashMap::new();
    for (request, statuses) in of_request {
        ended.entry(SynchronizationState::of(statuses)).or_default().push(request);
    }
    for (state, requests) in ended {
        sync::Entity::update_many()
            .col_expr(sync::Column::State, Expr::value(state.as_str()))
            .col_expr(sync::Column::FinishedAt, Expr::value(now.as_millis()))
            .filter(sync::Column::RequestId.is_in(requests))
            .exec(txn)
            .await?;
    }
    Ok(())
}

/// The traces of the calls that wait for a replica, oldest first.
pub(super) async fn traces(
    txn: &DatabaseTransaction,
    image: &ImageId,
    region: &RegionId,
    most: usize,
) -> Result<Vec<TraceContext>> {
    let waiting = waiting(txn, image, region).await?;
    Ok(waiting.into_iter().filter_map(|w| w.trace).take(most).collect())
}

/// Whether a synchronization is in a state. The state stands in the text of the statement: by a value that is bound later, no
/// index of the rows in one state can be chosen.
fn in_state(state: SynchronizationState) -> Expr {
    Expr::cust(format!("synchronization.state = '{}'", state.as_str()))
}

fn running_of(image: &ImageId) -> sea_orm::sea_query::SelectStatement {
    Query::select()
        .column(sync::Column::RequestId)
        .from(sync::Entity)
        .and_where(Expr::col(sync::Column::ImageId).eq(image.as_str()))
        .and_where(in_state(SynchronizationState::Running))
        .take()
}

/// Puts the synchronizations of some rows together: their regions that have ended, and the replicas of those that have not.
async fn assemble(db: &impl ConnectionTrait, rows: Vec<sync::Model>) -> Result<Vec<Synchronization>> {
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
            })
        })
        .collect()
}

/// The regions of the column `targets`.
fn targets(column: &str) -> Result<Vec<RegionId>> {
    column.split(',').filter(|name| !name.is_empty()).map(|name| Ok(parse("synchronization.targets", name)?)).collect()
}

/// A replica as callers see it.
fn view(region: &RegionId, replica: &Replica) -> RegionView {
    let next_attempt_at = match &replica.state {
        ReplicaState::Pending { not_before, last: Some(_) } => Some(*not_before),
        _ => None,
    };
    RegionView {
        region: region.clone(),
        status: replica.status(),
        progress: replica.progress,
        attempt: replica.attempt,
        next_attempt_at,
        fault: replica.last_fault().cloned(),
        started_at: replica.started_at,
        finished_at: replica.finished_at,
    }
}

/// A region whose replica's row was read a moment before it was written.
fn not_started(region: &RegionId) -> RegionView {
    RegionView {
        region: region.clone(),
        status: RegionStatus::Pending,
        progress: Progress::default(),
        attempt: 0,
        next_attempt_at: None,
        fault: None,
        started_at: None,
        finished_at: None,
    }
}
