//! Synchronizations as callers see them: reading, listing and canceling.

use std::collections::HashMap;

use domain::{
    Event, ImageId, RegionId, RegionStatus, RegionView, Replica, RequestId, Synchronization, SynchronizationState,
    Warnings,
};
use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait as _,
    sea_query::{Expr, ExprTrait as _},
};
use tracing::instrument;
use uuid::Uuid;

use super::{
    Db, Error, Result,
    bulk::settlement,
    connections::{Reader, Transaction},
    entity::{self, synchronization as sync, synchronization_target as target},
    replica::{self, Lock, Locked},
};

/// Maximum number of synchronizations that one query reads.
const CHUNK: usize = 500;

/// Selects synchronizations in a list.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct SynchronizationFilter {
    pub image: Option<ImageId>,
    pub state: Option<SynchronizationState>,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct SynchronizationPage {
    /// The synchronizations, newest first.
    pub synchronizations: Vec<Synchronization>,
    /// Whether older ones follow.
    pub more: bool,
}

impl Db {
    /// Returns a synchronization with the current state of its regions.
    #[instrument(name = "SELECT synchronization", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "synchronization"))]
    pub async fn synchronization_get(&self, id: RequestId) -> Result<Synchronization> {
        self.synchronizations(&[id]).await?.pop().ok_or(Error::SynchronizationNotFound(id))
    }

    /// Lists up to `limit` synchronizations that are older than `before`, newest first.
    #[instrument(name = "SELECT synchronization", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "SELECT", db.collection.name = "synchronization"))]
    pub async fn synchronization_list(
        &self,
        filter: &SynchronizationFilter,
        before: Option<RequestId>,
        limit: u64,
    ) -> Result<SynchronizationPage> {
        let list = async |reader: Reader| {
            let reader = &reader;
            let page = |state: Option<Expr>| {
                let query = sync::Entity::find()
                    .apply_if(filter.image.as_ref(), |q, image| q.filter(sync::Column::ImageId.eq(image.as_str())))
                    .apply_if(state, |q, state| q.filter(state))
                    .apply_if(before, |q, before| q.filter(sync::Column::RequestId.lt(before.as_uuid())))
                    .order_by_desc(sync::Column::RequestId)
                    .limit(limit + 1);
                query.all(reader)
            };
            let mut rows = match (filter.state, &filter.image) {
                // Running and ended synchronizations of an image are in different indexes.
                (None, Some(_)) => {
                    let mut rows = page(Some(in_state(SynchronizationState::Running))).await?;
                    rows.extend(page(Some(has_ended())).await?);
                    rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.request_id));
                    rows
                }
                (Some(state), Some(_)) if state.is_terminal() => page(Some(in_state(state).and(has_ended()))).await?,
                (state, _) => page(state.map(in_state)).await?,
            };
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let more = rows.len() > limit;
            rows.truncate(limit);
            Ok(SynchronizationPage { synchronizations: with_regions(reader, rows).await?, more })
        };
        self.0.connections.read(list).await
    }

    /// Returns the synchronizations with these ids. Unknown ids are left out.
    pub(super) async fn synchronizations(&self, ids: &[RequestId]) -> Result<Vec<Synchronization>> {
        let mut synchronizations = Vec::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
            let read = async |reader: Reader| {
                let reader = &reader;
                let rows = sync::Entity::find().filter(sync::Column::RequestId.is_in(ids)).all(reader).await?;
                with_regions(reader, rows).await
            };
            synchronizations.extend(self.0.connections.read(read).await?);
        }
        Ok(synchronizations)
    }

    /// Cancels the regions of a synchronization that have not ended. A copy continues if another running
    /// synchronization waits for it.
    #[instrument(name = "UPDATE synchronization", skip_all, fields(otel.kind = "client", db.system.name = self.system(), db.operation.name = "UPDATE", db.collection.name = "synchronization"))]
    pub async fn synchronization_cancel(&self, id: RequestId) -> Result<Synchronization> {
        self.0.connections.transaction(async |txn| cancel(&txn, id).await).await?;
        self.0.signals.notify_changed();
        self.synchronization_get(id).await
    }
}

async fn cancel(txn: &Transaction, id: RequestId) -> Result<()> {
    // The image and the targets never change, so they can be read before the replicas are locked.
    let row = sync::Entity::find_by_id(id.as_uuid()).one(txn).await?;
    let row = row.ok_or(Error::SynchronizationNotFound(id))?;
    let image = row.image_id.0;
    let keys: Vec<replica::Key> = row.targets.0.0.into_iter().map(|region| (image.clone(), region)).collect();
    let Locked { rows, now } = replica::lock(txn, keys.clone(), Lock::Update).await?;
    let waiting = settlement::waiting(txn, &keys, true).await?;
    let mut changed = Vec::new();
    let mut outcomes = Vec::new();
    for (image, region) in &keys {
        let mut on_region = waiting.iter().filter(|w| w.region == *region);
        let Some(request) = on_region.clone().find(|w| w.request_id == row.request_id) else { continue };
        let is_alone = on_region.all(|w| w.request_id == row.request_id);
        let before = rows.get(&(image.clone(), region.clone()));
        let replica = before.map(|row| row.replica()).transpose()?;
        let canceled = replica.as_ref().filter(|_| is_alone).and_then(|r| r.apply(Event::Cancel, now).ok());
        if let (Some(before), Some(replica)) = (before, &canceled) {
            changed.push(before.successor(image, region, replica));
        }
        // Another synchronization waits for a replica that is not canceled here.
        let last = canceled.or(replica).map_or_else(
            || RegionView::not_started(region.clone()),
            |replica| RegionView::new(region.clone(), &replica),
        );
        let view = RegionView {
            status: RegionStatus::Canceled,
            verification: None,
            next_attempt_at: None,
            finished_at: Some(now),
            warnings: Warnings::default(),
            ..last
        };
        outcomes.push((request.clone(), view));
    }
    replica::save(txn, changed).await?;
    settlement::write_outcomes(txn, outcomes, now).await
}

/// Returns the condition that a synchronization is in a state. The state is part of the statement's text: the planner
/// cannot choose a partial index by a value that is bound later.
fn in_state(state: SynchronizationState) -> Expr {
    Expr::cust(format!("synchronization.state = '{}'", state.as_str()))
}

/// Returns the condition that a synchronization has ended, in the form of the partial index.
fn has_ended() -> Expr {
    Expr::cust("synchronization.state <> 'RUNNING'")
}

/// Adds the regions to synchronizations: outcomes of regions that have ended, and the replicas of the others.
async fn with_regions(reader: &Reader, rows: Vec<sync::Model>) -> Result<Vec<Synchronization>> {
    use entity::replica::{Column, Entity};
    let ids = rows.iter().map(|row| row.request_id);
    let mut outcomes: HashMap<(Uuid, RegionId), RegionView> = HashMap::new();
    for row in target::Entity::find().filter(target::Column::RequestId.is_in(ids)).all(reader).await? {
        let view = row.view();
        outcomes.insert((row.request_id, row.region_id.0), view);
    }
    let running: Vec<&str> = rows.iter().filter(|r| r.finished_at.is_none()).map(|r| r.image_id.0.as_str()).collect();
    let mut replicas: HashMap<replica::Key, Replica> = HashMap::new();
    if !running.is_empty() {
        for row in Entity::find().filter(Column::ImageId.is_in(running)).all(reader).await? {
            replicas.insert(row.key(), row.replica()?);
        }
    }
    let synchronizations = rows.into_iter().map(|row| {
        let image = row.image_id.0;
        let regions = row.targets.0.0.into_iter().map(|region| {
            let outcome = outcomes.remove(&(row.request_id, region.clone()));
            outcome.unwrap_or_else(|| match replicas.get(&(image.clone(), region.clone())) {
                Some(replica) => RegionView::new(region, replica),
                // The synchronization was read a moment before its replica was written.
                None => RegionView::not_started(region),
            })
        });
        Synchronization {
            request_id: row.request_id.into(),
            regions: regions.collect(),
            image,
            principal: row.principal,
            state: row.state.0,
            created_at: row.created_at.0,
            finished_at: row.finished_at.map(|at| at.0),
            trace_id: row.traceparent.as_deref().and_then(trace_id),
        }
    });
    Ok(synchronizations.collect())
}

/// Returns the trace id of a `traceparent` header (W3C Trace Context, section 3.2).
fn trace_id(traceparent: &str) -> Option<String> {
    let id = traceparent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}
