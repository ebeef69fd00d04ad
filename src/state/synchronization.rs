//! Synchronizations: what callers see of them, how they end, how they are canceled.

use std::collections::{BTreeMap, HashMap};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect, QueryTrait as _,
    sea_query::{Expr, ExprTrait as _, Query},
};
use tracing::instrument;
use uuid::Uuid;

use super::{Error, Result, State, TraceContext, entity, replica};
use crate::domain::{
    Event, ImageId, Progress, RegionId, RegionStatus, RegionView, Replica, RequestId, State as ReplicaState,
    Synchronization, SynchronizationState, Timestamp,
};
use entity::{
    synchronization as sync, synchronization_target as target,
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
            .apply_if(filter.state, |q, state| q.filter(sync::Column::State.eq(state.as_str())))
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
        let image: ImageId = text("synchronization.image_id", &row.image_id)?;
        let open = target::Entity::find()
            .filter(target::Column::RequestId.eq(id.as_uuid()))
            .filter(target::Column::Status.is_null())
            .all(&txn)
            .await?;
        for row in open {
            let region: RegionId = text("synchronization_target.region_id", &row.region_id)?;
            let others = target::Entity::find()
                .filter(target::Column::RequestId.in_subquery(running_of(&image)))
                .filter(target::Column::RequestId.ne(id.as_uuid()))
                .filter(target::Column::RegionId.eq(region.as_str()))
                .filter(target::Column::Status.is_null())
                .one(&txn)
                .await?;
            if others.is_none() {
                if let Ok(after) = replica::apply(&txn, &image, &region, Event::Cancel, now).await? {
                    settle(&txn, &image, &region, &after, now).await?;
                }
            } else {
                let key = (image.to_string(), region.to_string());
                let replica = ReplicaEntity::find_by_id(key).one(&txn).await?.map(|r| r.replica()).transpose()?;
                let seen = replica.map(|r| view(&region, &r)).unwrap_or_else(|| waiting(&region));
                let ended = target::ended(&RegionView {
                    status: RegionStatus::Canceled,
                    next_attempt_at: None,
                    finished_at: Some(now),
                    ..seen
                });
                target::Entity::update_many()
                    .set(ended)
                    .filter(target::Column::RequestId.eq(row.request_id))
                    .filter(target::Column::RegionId.eq(row.region_id))
                    .exec(&txn)
                    .await?;
            }
        }
        finish(&txn, &image, now).await?;
        txn.commit().await?;
        self.0.changed.raise();
        self.synchronization_get(id).await
    }
}

/// Writes the end of a replica down at every target that waits for it, and the end of every synchronization that waits for
/// nothing any more. However many wait, the statements are the same few.
pub(super) async fn settle(
    txn: &DatabaseTransaction,
    image: &ImageId,
    region: &RegionId,
    replica: &Replica,
    now: Timestamp,
) -> Result<()> {
    target::Entity::update_many()
        .set(target::ended(&view(region, replica)))
        .filter(target::Column::RequestId.in_subquery(running_of(image)))
        .filter(target::Column::RegionId.eq(region.as_str()))
        .filter(target::Column::Status.is_null())
        .exec(txn)
        .await?;
    finish(txn, image, now).await
}

/// Ends every running synchronization of an image whose targets have all ended.
async fn finish(txn: &DatabaseTransaction, image: &ImageId, now: Timestamp) -> Result<()> {
    let open = Query::select()
        .column(target::Column::RequestId)
        .from(target::Entity)
        .and_where(Expr::col(target::Column::Status).is_null())
        .and_where(Expr::col(target::Column::RequestId).in_subquery(running_of(image)))
        .take();
    let outcomes: Vec<(Uuid, String)> = target::Entity::find()
        .select_only()
        .columns([target::Column::RequestId, target::Column::Status])
        .filter(target::Column::RequestId.in_subquery(running_of(image)))
        .filter(target::Column::RequestId.not_in_subquery(open))
        .distinct()
        .into_tuple()
        .all(txn)
        .await?;
    let mut of_request: BTreeMap<Uuid, Vec<RegionStatus>> = BTreeMap::new();
    for (request, status) in outcomes {
        of_request.entry(request).or_default().push(text("synchronization_target.status", &status)?);
    }
    let mut ended: HashMap<SynchronizationState, Vec<Uuid>> = HashMap::new();
    for (request, statuses) in of_request {
        ended.entry(SynchronizationState::of(statuses)).or_default().push(request);
    }
    for (state, requests) in ended {
        for requests in requests.chunks(CHUNK) {
            sync::Entity::update_many()
                .col_expr(sync::Column::State, Expr::value(state.as_str()))
                .col_expr(sync::Column::FinishedAt, Expr::value(now.as_millis()))
                .filter(sync::Column::RequestId.is_in(requests.iter().copied()))
                .exec(txn)
                .await?;
        }
    }
    Ok(())
}

/// The traces of the calls that wait for a replica, oldest first.
pub(super) async fn traces(
    txn: &DatabaseTransaction,
    image: &ImageId,
    region: &RegionId,
    limit: u64,
) -> Result<Vec<TraceContext>> {
    let waiting = Query::select()
        .column(target::Column::RequestId)
        .from(target::Entity)
        .and_where(Expr::col(target::Column::RegionId).eq(region.as_str()))
        .and_where(Expr::col(target::Column::Status).is_null())
        .and_where(Expr::col(target::Column::RequestId).in_subquery(running_of(image)))
        .take();
    let rows = sync::Entity::find()
        .filter(sync::Column::RequestId.in_subquery(waiting))
        .filter(sync::Column::Traceparent.is_not_null())
        .order_by_asc(sync::Column::RequestId)
        .limit(limit)
        .all(txn)
        .await?;
    let context = |row: sync::Model| Some(TraceContext { parent: row.traceparent?, state: row.tracestate });
    Ok(rows.into_iter().filter_map(context).collect())
}

fn running_of(image: &ImageId) -> sea_orm::sea_query::SelectStatement {
    Query::select()
        .column(sync::Column::RequestId)
        .from(sync::Entity)
        .and_where(Expr::col(sync::Column::ImageId).eq(image.as_str()))
        .and_where(Expr::col(sync::Column::State).eq(SynchronizationState::Running.as_str()))
        .take()
}

/// Puts the synchronizations of some rows together: their targets, and the replicas of those that have not ended.
async fn assemble(db: &impl ConnectionTrait, rows: Vec<sync::Model>) -> Result<Vec<Synchronization>> {
    let ids = rows.iter().map(|row| row.request_id);
    let targets = target::Entity::find()
        .filter(target::Column::RequestId.is_in(ids))
        .order_by_asc(target::Column::RegionId)
        .all(db)
        .await?;
    let running: Vec<&str> = rows.iter().filter(|r| r.finished_at.is_none()).map(|r| r.image_id.as_str()).collect();
    let mut replicas: HashMap<(String, String), Replica> = HashMap::new();
    if !running.is_empty() {
        for row in ReplicaEntity::find().filter(ReplicaColumn::ImageId.is_in(running)).all(db).await? {
            let replica = row.replica()?;
            replicas.insert((row.image_id, row.region_id), replica);
        }
    }
    let mut by_request: BTreeMap<Uuid, Vec<target::Model>> = BTreeMap::new();
    for row in targets {
        by_request.entry(row.request_id).or_default().push(row);
    }
    rows.into_iter()
        .map(|row| {
            let targets = by_request.remove(&row.request_id).unwrap_or_default();
            let regions = targets.iter().map(|target| {
                let region: RegionId = text("synchronization_target.region_id", &target.region_id)?;
                let replica = replicas.get(&(row.image_id.clone(), target.region_id.clone()));
                let live = || replica.map_or_else(|| waiting(&region), |r| view(&region, r));
                Ok(target.outcome()?.unwrap_or_else(live))
            });
            Ok(Synchronization {
                request_id: row.request_id.into(),
                image: text("synchronization.image_id", &row.image_id)?,
                regions: regions.collect::<Result<_>>()?,
                principal: row.principal,
                state: text("synchronization.state", &row.state)?,
                created_at: Timestamp::from_millis(row.created_at),
                finished_at: row.finished_at.map(Timestamp::from_millis),
            })
        })
        .collect()
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

/// A target whose replica's row was read a moment before it was written.
fn waiting(region: &RegionId) -> RegionView {
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

fn text<T: std::str::FromStr<Err: std::fmt::Display>>(column: &str, value: &str) -> Result<T> {
    Ok(value.parse().map_err(|error| DbErr::Type(format!("the column {column} holds {value:?}: {error}")))?)
}
