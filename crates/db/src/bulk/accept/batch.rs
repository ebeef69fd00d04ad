//! Decides about a batch of calls and collects the rows to write.

use std::collections::BTreeSet;

use domain::{
    AcceptError, Accepted, Event, ImageId, RegionId, RegionStatus, Regions, Replica, RequestId, Standing, Step,
    SynchronizationState, Timestamp, accept,
};
use sea_orm::{ConnectionTrait, DbBackend};
use tracing::instrument;
use uuid::Uuid;

use super::{
    NewSynchronization,
    snapshot::{BatchSnapshot, IdempotentRequest, ReplicaSeen, parameters},
};
use crate::{
    Error, Result,
    connections::{Session, Transaction},
    entity::{self, columns::Number},
    image_generation,
    replica::{self, Key, Lock},
    sql::{Cell, ColumnKind, Rows, Sql},
};

/// Suffix of the recorded parameters of a call that may overwrite. A repeated call must match it too.
const OVERWRITE: &str = " overwrite";

/// The rows that a batch writes and those that it depends on.
#[derive(Debug, Default)]
pub struct WriteSet {
    synchronizations: Vec<[Cell; 12]>,
    /// Id of the first synchronization.
    first: Option<Uuid>,
    /// Generation of the images when the batch was decided; see [`image_generation`].
    generation: Option<i64>,
    /// Replicas to insert, without duplicates.
    to_insert: Vec<Key>,
    /// Failed or canceled replicas to restart.
    to_restart: BTreeSet<Key>,
    /// Replicas in flight that calls of the batch wait for. None of them may end before the batch is written.
    depends_on: BTreeSet<Key>,
}

/// Decides about the calls in order. Each decision takes the copies into account that earlier calls start.
#[instrument(name = "step: decide", level = "trace", skip_all)]
pub fn decide(
    calls: &[NewSynchronization],
    mut snapshot: BatchSnapshot,
    regions: &Regions,
    now: Timestamp,
) -> (Vec<Result<RequestId>>, WriteSet) {
    let mut writes = WriteSet { generation: snapshot.generation, ..WriteSet::default() };
    let results = calls.iter().map(|call| decide_one(call, &mut snapshot, regions, now, &mut writes)).collect();
    // Transactions insert in the order of the keys to avoid deadlocks.
    writes.to_insert.sort_unstable();
    (results, writes)
}

fn decide_one(
    call: &NewSynchronization,
    snapshot: &mut BatchSnapshot,
    regions: &Regions,
    now: Timestamp,
    writes: &mut WriteSet,
) -> Result<RequestId> {
    let mut targets = call.targets.canonical();
    if call.overwrite {
        targets.push_str(OVERWRITE);
    }
    let idempotency = call.token.as_ref().map(|token| {
        let token = (call.principal.clone(), token.as_str().to_owned());
        (token, parameters(call.image.as_str(), &targets))
    });
    if let Some((token, parameters)) = &idempotency
        && let Some(first) = snapshot.tokens.get(token)
    {
        return if first.parameters == *parameters {
            Ok(first.request_id)
        } else {
            Err(Error::TokenReused(first.request_id))
        };
    }
    let registered = snapshot.images.get(call.image.as_str());
    let replicas = snapshot.replicas.get(call.image.as_str()).map_or(&[][..], Vec::as_slice);
    let standing = |region: &RegionId| {
        Standing::from_status(replicas.iter().find(|(r, _)| r == region).map(|(_, replica)| replica.status))
    };
    let accepted = accept(&call.targets, regions, registered, standing).map_err(|error| match error {
        AcceptError::ImageNotFound => Error::ImageNotFound(call.image.clone()),
        AcceptError::Superseded(by) => Error::ImageSuperseded { image: call.image.clone(), by },
        AcceptError::AlreadyAvailable(regions) => Error::ImageAlreadyAvailable { image: call.image.clone(), regions },
    })?;

    writes.first.get_or_insert(call.request_id.as_uuid());
    writes.synchronizations.push(synchronization_row(call, targets, &accepted, now));
    writes.add_replicas(&call.image, accepted, snapshot);
    if let Some((token, parameters)) = idempotency {
        snapshot.tokens.insert(token, IdempotentRequest { request_id: call.request_id, parameters });
    }
    Ok(call.request_id)
}

fn synchronization_row(
    call: &NewSynchronization,
    parameters: String,
    accepted: &Accepted,
    now: Timestamp,
) -> [Cell; 12] {
    let targets: Vec<&str> = accepted.0.iter().map(|(region, _)| region.as_str()).collect();
    let state = SynchronizationState::from_regions(targets.iter().map(|_| RegionStatus::Pending));
    let trace = call.trace.as_ref();
    [
        call.request_id.as_uuid().into(),
        call.image.as_str().into(),
        call.principal.as_str().into(),
        call.token.as_ref().map(|token| token.as_str().to_owned()).into(),
        parameters.into(),
        targets.join(",").into(),
        Number(targets.len() as u64).into(),
        trace.map(|trace| trace.parent.clone()).into(),
        trace.and_then(|trace| trace.state.clone()).into(),
        state.as_str().into(),
        state.is_terminal().then_some(now.as_millis()).into(),
        call.overwrite.then_some(1).into(),
    ]
}

impl WriteSet {
    /// Adds the replicas of an accepted call, and records in the snapshot which ones this batch starts.
    fn add_replicas(&mut self, image: &ImageId, accepted: Accepted, snapshot: &mut BatchSnapshot) {
        let replicas = snapshot.replicas.entry(image.to_string()).or_default();
        for (region, step) in accepted.0 {
            let replica = replicas.iter_mut().find(|(r, _)| *r == region).map(|(_, replica)| replica);
            let key = (image.clone(), region);
            let started = ReplicaSeen { status: RegionStatus::Pending, is_in_batch: true };
            match (step, replica) {
                (Step::Start, None) => {
                    replicas.push((key.1.clone(), started));
                    self.to_insert.push(key);
                }
                (Step::Start, Some(replica)) => {
                    *replica = started;
                    self.to_restart.insert(key);
                }
                (Step::Join, Some(ReplicaSeen { is_in_batch: true, .. })) => {}
                (Step::Join, _) => drop(self.depends_on.insert(key)),
            }
        }
    }

    /// Whether the batch only adds rows and does not depend on existing ones.
    pub fn are_independent(&self) -> bool {
        self.to_restart.is_empty() && self.depends_on.is_empty()
    }

    /// Locks the rows that the batch depends on, and writes the batch, in one transaction.
    pub async fn write_after_locking(self, txn: &Transaction, now: Timestamp) -> Result<()> {
        let restarted = self.lock_and_restart(txn, now).await?;
        self.write(txn, now).await?;
        replica::save(txn, restarted).await
    }

    /// Writes the new rows, in one statement except on MySQL. Writes nothing and returns a conflict if an image was
    /// removed or superseded since the decision; no removal can commit until the batch has been committed.
    #[instrument(name = "step: write", level = "trace", skip_all)]
    pub async fn write(self, session: &Session<impl ConnectionTrait + Send>, now: Timestamp) -> Result<()> {
        let Some(first) = self.first else { return Ok(()) };
        let backend = session.get_database_backend();
        let generation = self.generation;
        let unchanged = |sql: Sql| match backend {
            DbBackend::Postgres | DbBackend::Sqlite => {
                let current = sql.text(" WHERE (SELECT g.generation FROM image_generation AS g");
                current.lock_share("g").text(") = ").value(generation)
            }
            _ => sql,
        };
        let insert = unchanged(insert_synchronizations(Sql::new(session), self.synchronizations, now));
        let to_insert = &self.to_insert;
        let written = match backend {
            _ if to_insert.is_empty() => insert.execute(session).await?,
            // Writes synchronizations and replicas in one round trip.
            DbBackend::Postgres => {
                insert.and("accepted", |sql| unchanged(insert_replicas(sql, to_insert, now))).execute(session).await?
            }
            DbBackend::Sqlite => {
                let accepted = " WHERE EXISTS (SELECT 1 FROM synchronization AS s WHERE s.request_id = ";
                let replicas = |sql| insert_replicas(sql, to_insert, now).text(accepted).value(first).text(")");
                insert.and("accepted", replicas).execute(session).await?
            }
            _ => {
                insert.execute(session).await?;
                insert_replicas(Sql::new(session), to_insert, now).execute(session).await?
            }
        };
        if written == 0 { Err(Error::Conflict(None)) } else { Ok(()) }
    }

    /// Locks the replicas that the batch depends on and returns the rows of those that it restarts. Returns a conflict
    /// if another transaction changed one since the decision. A locked replica cannot end before the batch has been
    /// committed; the transaction that ends it later finds the synchronizations that wait for it.
    #[instrument(name = "step: lock", level = "trace", skip_all)]
    async fn lock_and_restart(&self, txn: &Transaction, now: Timestamp) -> Result<Vec<entity::replica::Model>> {
        let keys: Vec<Key> = self.to_restart.iter().chain(&self.depends_on).cloned().collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        // Locked before the replicas, as in the removal of an image, to avoid deadlocks.
        if let Some(generation) = self.generation
            && !image_generation::keep(txn, generation).await?
        {
            return Err(Error::Conflict(None));
        }
        let strength = if self.to_restart.is_empty() { Lock::Share } else { Lock::Update };
        let locked = replica::lock(txn, keys.clone(), strength).await?;
        let mut restarted = Vec::with_capacity(self.to_restart.len());
        for key in &keys {
            let row = locked.rows.get(key).ok_or(Error::Conflict(None))?;
            let before = row.replica()?;
            let expected = if self.to_restart.contains(key) { Standing::Missing } else { Standing::InFlight };
            if Standing::from_status(Some(before.status())) != expected {
                return Err(Error::Conflict(None));
            }
            if expected == Standing::Missing {
                let after = before.apply(Event::Request, now).map_err(|_| Error::Conflict(None))?;
                restarted.push(row.successor(&key.0, &key.1, &after));
            }
        }
        Ok(restarted)
    }
}

fn insert_synchronizations(sql: Sql, rows: Vec<[Cell; 12]>, now: Timestamp) -> Sql {
    let columns = [
        ("request_id", ColumnKind::Uuid),
        ("image_id", ColumnKind::Name),
        ("principal", ColumnKind::Text),
        ("client_token", ColumnKind::NullableText),
        ("parameters", ColumnKind::Text),
        ("targets", ColumnKind::Text),
        ("open", ColumnKind::Number),
        ("traceparent", ColumnKind::NullableText),
        ("tracestate", ColumnKind::NullableText),
        ("state", ColumnKind::Name),
        ("finished_at", ColumnKind::NullableNumber),
        ("overwrite", ColumnKind::NullableNumber),
    ];
    sql.insert("synchronization", Rows::new(columns, rows), [("created_at", now.as_millis().into())])
}

fn insert_replicas(sql: Sql, keys: &[Key], now: Timestamp) -> Sql {
    let requested = Replica::requested(now);
    let constants = [
        ("state", requested.status().as_str().into()),
        ("due_at", now.as_millis().into()),
        ("fence", Number(requested.fence).into()),
    ];
    sql.insert("replica", replica::key_rows(keys), constants)
}
