//! Settlement: writes the end of a replica to every synchronization that waits for it, and ends synchronizations whose
//! regions have all ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use domain::{ImageId, RegionId, RegionStatus, RegionView, SynchronizationState, Timestamp};
use sea_orm::FromQueryResult;
use uuid::Uuid;

use super::accept::TraceContext;
use crate::{
    Result,
    connections::Transaction,
    entity::{synchronization, synchronization_target},
    replica::{self, Key},
    sql::{ColumnKind, Rows, Sql},
};

/// A running synchronization that waits for a replica.
#[derive(Debug, Clone)]
pub struct Waiting {
    pub request_id: Uuid,
    pub image: ImageId,
    pub region: RegionId,
    /// Number of the synchronization's regions that have not ended.
    open: i64,
    pub trace: Option<TraceContext>,
    /// Whether the synchronization lets a copy replace content that another program wrote under the image's name.
    pub overwrite: bool,
}

#[derive(FromQueryResult)]
struct WaitingRow {
    request_id: Uuid,
    image_id: synchronization::Text<ImageId>,
    region_id: synchronization_target::Text<RegionId>,
    targets: String,
    open: i64,
    traceparent: Option<String>,
    tracestate: Option<String>,
    overwrite: Option<i64>,
    /// The region, if it has ended for this synchronization.
    ended_region: Option<String>,
}

/// Returns the running synchronizations that wait for some replicas, oldest first. With `lock`, locks their rows. The
/// caller must already have locked the replicas, so that no synchronization starts or stops waiting for them.
pub async fn waiting(txn: &Transaction, replicas: &[Key], lock: bool) -> Result<Vec<Waiting>> {
    if replicas.is_empty() {
        return Ok(Vec::new());
    }
    // The set sorts the keys, so that rows are found and locked in the order of the keys.
    let replicas: BTreeSet<&Key> = replicas.iter().collect();
    let sql = Sql::new(txn)
        .text(
            "SELECT s.request_id, s.image_id, w.region_id, s.targets, s.open, s.traceparent, s.tracestate, \
             s.overwrite, t.region_id AS ended_region FROM ",
        )
        .rows(replica::key_rows(replicas))
        .join()
        .text(
            "synchronization AS s ON s.image_id = w.image_id AND s.state = 'RUNNING' \
             LEFT JOIN synchronization_target AS t ON t.request_id = s.request_id AND t.region_id = w.region_id \
             ORDER BY s.request_id",
        );
    let rows: Vec<WaitingRow> = if lock { sql.lock("s") } else { sql }.all(txn).await?;
    let waits = |row: &WaitingRow| {
        row.ended_region.is_none() && row.targets.split(',').any(|target| target == row.region_id.0.as_str())
    };
    let waiting = rows.into_iter().filter(waits).map(|row| Waiting {
        request_id: row.request_id,
        image: row.image_id.0,
        region: row.region_id.0,
        open: row.open,
        overwrite: row.overwrite.is_some(),
        trace: row.traceparent.map(|parent| TraceContext { parent, state: row.tracestate }),
    });
    Ok(waiting.collect())
}

/// Settles the synchronizations that wait for replicas that have ended and whose rows are locked. The number of
/// statements does not depend on the number of synchronizations.
pub async fn settle(txn: &Transaction, ended: &[(ImageId, RegionView)], now: Timestamp) -> Result<()> {
    let keys: Vec<Key> = ended.iter().map(|(image, view)| (image.clone(), view.region.clone())).collect();
    let views: HashMap<Key, &RegionView> = keys.iter().cloned().zip(ended.iter().map(|(_, view)| view)).collect();
    let waiting = waiting(txn, &keys, true).await?;
    let outcomes = waiting.into_iter().filter_map(|waiting| {
        let view = (*views.get(&(waiting.image.clone(), waiting.region.clone()))?).clone();
        Some((waiting, view))
    });
    write_outcomes(txn, outcomes.collect(), now).await
}

/// Writes the outcomes of regions, and ends the synchronizations that wait for no other region.
pub async fn write_outcomes(txn: &Transaction, outcomes: Vec<(Waiting, RegionView)>, now: Timestamp) -> Result<()> {
    if outcomes.is_empty() {
        return Ok(());
    }
    let mut open: BTreeMap<Uuid, (i64, Vec<RegionStatus>)> = BTreeMap::new();
    for (waiting, view) in &outcomes {
        let (open, statuses) = open.entry(waiting.request_id).or_insert((waiting.open, Vec::new()));
        *open -= 1;
        statuses.push(view.status);
    }
    let models =
        outcomes.iter().map(|(waiting, view)| synchronization_target::Model::from_view(waiting.request_id, view));
    Sql::new(txn).insert("synchronization_target", Rows::from_models(models), []).execute(txn).await?;
    let complete: Vec<Uuid> = open.iter().filter(|(_, (open, _))| *open == 0).map(|(id, _)| *id).collect();
    for (id, status) in statuses(txn, &complete).await? {
        if let Some((_, statuses)) = open.get_mut(&id) {
            statuses.push(status);
        }
    }
    let rows = open.into_iter().map(|(id, (open, statuses))| {
        let is_complete = open == 0;
        let state =
            if is_complete { SynchronizationState::from_regions(statuses) } else { SynchronizationState::Running };
        [id.into(), open.into(), state.as_str().into(), is_complete.then_some(now.as_millis()).into()]
    });
    let columns = [
        ("request_id", ColumnKind::Uuid),
        ("open", ColumnKind::Number),
        ("state", ColumnKind::Name),
        ("finished_at", ColumnKind::NullableNumber),
    ];
    let assignments = [("open", "w.open"), ("state", "w.state"), ("finished_at", "w.finished_at")];
    Sql::new(txn)
        .update("synchronization", &assignments, Rows::new(columns, rows), "t.request_id = w.request_id")
        .execute(txn)
        .await?;
    Ok(())
}

/// Returns the distinct outcomes of the regions of some synchronizations.
async fn statuses(txn: &Transaction, requests: &[Uuid]) -> Result<Vec<(Uuid, RegionStatus)>> {
    #[derive(FromQueryResult)]
    struct Row {
        request_id: Uuid,
        status: synchronization_target::Text<RegionStatus>,
    }
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let ids = Rows::new([("request_id", ColumnKind::Uuid)], requests.iter().map(|id| [(*id).into()]));
    let sql = Sql::new(txn)
        .text("SELECT DISTINCT t.request_id, t.status FROM ")
        .rows(ids)
        .join()
        .text("synchronization_target AS t ON t.request_id = w.request_id");
    let rows: Vec<Row> = sql.all(txn).await?;
    Ok(rows.into_iter().map(|row| (row.request_id, row.status.0)).collect())
}
