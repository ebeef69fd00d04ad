//! One group of calls: the decisions about them, and the rows that come of these: two kinds, whole lists of them at a time.

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DbBackend};
use tracing::instrument;
use uuid::Uuid;

use super::{
    Ask,
    known::{Ahead, Known, Repeated, parameters},
};
use crate::{
    domain::{
        Event, Refusal, RegionId, RegionStatus, Regions, Replica, RequestId, Standing, Step, SynchronizationState,
        Timestamp, accept,
    },
    state::{
        Error, Result,
        database::{Session, Transaction},
        entity, image_generation,
        replica::{self, Key, Lock},
        sql::{Cell, Kind, Rows, Sql},
    },
};

/// What the targets of a call are followed by where it may overwrite: a repeated call must say the same.
const OVERWRITING: &str = " overwrite";

/// The rows that a group of calls writes, and those that it relies on.
#[derive(Debug, Default)]
pub struct Changes {
    synchronizations: Vec<[Cell; 12]>,
    /// The id of the first of them.
    first: Option<Uuid>,
    /// The generation of the images by which the calls were decided; see [`image_generation`].
    generation: Option<i64>,
    /// Replicas that are not there, each once.
    missing: Vec<Key>,
    /// Replicas that have failed or were canceled, and are asked for again.
    ended: BTreeSet<Key>,
    /// Replicas that others have asked for and that must not have ended.
    joined: BTreeSet<Key>,
}

/// Decides about the calls in their order; each sees what those before it have started.
#[instrument(name = "step: decide", level = "trace", skip_all)]
pub fn decide(asks: &[Ask], mut known: Known, regions: &Regions, now: Timestamp) -> (Vec<Result<RequestId>>, Changes) {
    let mut rows = Changes { generation: known.generation, ..Changes::default() };
    let answers = asks.iter().map(|ask| decide_one(ask, &mut known, regions, now, &mut rows)).collect();
    // Whoever inserts several does so in the order of their keys, so that nobody waits in a circle.
    rows.missing.sort_unstable();
    (answers, rows)
}

fn decide_one(
    ask: &Ask,
    known: &mut Known,
    regions: &Regions,
    now: Timestamp,
    rows: &mut Changes,
) -> Result<RequestId> {
    let mut asked = ask.targets.canonical();
    if ask.overwrite {
        asked.push_str(OVERWRITING);
    }
    let repeatable = ask.token.as_ref().map(|token| {
        let token = (ask.principal.clone(), token.as_str().to_owned());
        (token, parameters(ask.image.as_str(), &asked))
    });
    if let Some((token, parameters)) = &repeatable
        && let Some(repeated) = known.tokens.get(token)
    {
        return if repeated.parameters == *parameters {
            Ok(repeated.request_id)
        } else {
            Err(Error::TokenReused(repeated.request_id))
        };
    }
    let registered = known.images.get(ask.image.as_str());
    let of_image = known.replicas.get(ask.image.as_str()).map_or(&[][..], Vec::as_slice);
    let standing =
        |region: &RegionId| Standing::of(of_image.iter().find(|(r, _)| r == region).map(|(_, ahead)| ahead.status));
    let accepted = accept(&ask.targets, regions, registered, standing).map_err(|refusal| match refusal {
        Refusal::ImageNotFound => Error::ImageNotFound(ask.image.clone()),
        Refusal::Superseded(by) => Error::ImageSuperseded { image: ask.image.clone(), by },
        Refusal::AlreadyThere(regions) => Error::ImageAlreadyThere { image: ask.image.clone(), regions },
    })?;

    rows.first.get_or_insert(ask.request_id.as_uuid());
    let targets: Vec<&str> = accepted.0.iter().map(|(region, _)| region.as_str()).collect();
    let state = SynchronizationState::of(targets.iter().map(|_| RegionStatus::Pending));
    let trace = ask.trace.as_ref();
    rows.synchronizations.push([
        ask.request_id.as_uuid().into(),
        ask.image.as_str().into(),
        ask.principal.as_str().into(),
        ask.token.as_ref().map(|token| token.as_str().to_owned()).into(),
        asked.into(),
        targets.join(",").into(),
        entity::signed(targets.len() as u64).into(),
        trace.map(|t| t.parent.clone()).into(),
        trace.and_then(|t| t.state.clone()).into(),
        state.as_str().into(),
        state.is_terminal().then_some(now.as_millis()).into(),
        ask.overwrite.then_some(1).into(),
    ]);
    let of_image = known.replicas.entry(ask.image.to_string()).or_default();
    for (region, step) in accepted.0 {
        let ahead = of_image.iter_mut().find(|(r, _)| *r == region).map(|(_, ahead)| ahead);
        let key = (ask.image.clone(), region);
        let started = Ahead { status: RegionStatus::Pending, ours: true };
        match (step, ahead) {
            (Step::Start, None) => {
                of_image.push((key.1.clone(), started));
                rows.missing.push(key);
            }
            (Step::Start, Some(ahead)) => {
                *ahead = started;
                rows.ended.insert(key);
            }
            (Step::Join, Some(Ahead { ours: true, .. })) => {}
            (Step::Join, _) => drop(rows.joined.insert(key)),
        }
    }
    if let Some((token, parameters)) = repeatable {
        known.tokens.insert(token, Repeated { request_id: ask.request_id, parameters });
    }
    Ok(ask.request_id)
}

impl Changes {
    /// Whether nothing that is there already has to stay as it is until they are written, or is changed by them.
    pub fn stand_alone(&self) -> bool {
        self.ended.is_empty() && self.joined.is_empty()
    }

    /// Writes them in a transaction, which may have locked what they rely on when it read that.
    pub async fn write_after_locking(self, txn: &Transaction, now: Timestamp) -> Result<()> {
        let again = self.request_again(txn, now).await?;
        self.write(txn, now).await?;
        replica::save(txn, again).await
    }

    /// Writes them in one statement, but for MySQL. If an image was removed or superseded since the calls were decided, nothing is written,
    /// and the group is to be decided again; none can be until the group is committed.
    #[instrument(name = "step: write", level = "trace", skip_all)]
    pub async fn write(self, db: &Session<impl ConnectionTrait + Send>, now: Timestamp) -> Result<()> {
        let Some(first) = self.first else { return Ok(()) };
        let backend = db.get_database_backend();
        let generation = self.generation;
        let unchanged = |sql: Sql| match backend {
            DbBackend::Postgres | DbBackend::Sqlite => {
                let current = sql.text(" WHERE (SELECT g.generation FROM image_generation AS g");
                current.share("g").text(") = ").value(generation)
            }
            _ => sql,
        };
        let insert = unchanged(insert_synchronizations(Sql::on(db), self.synchronizations, now));
        let missing = &self.missing;
        let written = match backend {
            _ if missing.is_empty() => insert.execute(db).await?,
            // Both at once: a way to the database and back less.
            DbBackend::Postgres => {
                insert.and("accepted", |sql| unchanged(insert_replicas(sql, missing, now))).execute(db).await?
            }
            DbBackend::Sqlite => {
                let accepted = " WHERE EXISTS (SELECT 1 FROM synchronization AS s WHERE s.request_id = ";
                let replicas = |sql| insert_replicas(sql, missing, now).text(accepted).value(first).text(")");
                insert.and("accepted", replicas).execute(db).await?
            }
            _ => {
                insert.execute(db).await?;
                insert_replicas(Sql::on(db), missing, now).execute(db).await?
            }
        };
        if written == 0 { Err(Error::Conflict(None)) } else { Ok(()) }
    }

    /// Locks the replicas that are there and that the group relies on, makes sure that it still may, and asks for those again that
    /// have ended; where others have changed them meanwhile, returns a conflict. A replica that is joined can't end any more before
    /// the group is committed; whoever ends it then finds the synchronizations that wait for it.
    #[instrument(name = "step: lock", level = "trace", skip_all)]
    async fn request_again(&self, txn: &Transaction, now: Timestamp) -> Result<Vec<entity::replica::Model>> {
        let keys: Vec<Key> = self.ended.iter().chain(&self.joined).cloned().collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        // Before the replicas, as who removes an image does, so that the two can't wait for each other.
        if let Some(generation) = self.generation
            && !image_generation::keep(txn, generation).await?
        {
            return Err(Error::Conflict(None));
        }
        let how = if self.ended.is_empty() { Lock::Keep } else { Lock::Change };
        let locked = replica::lock(txn, keys.clone(), how).await?;
        let mut again = Vec::with_capacity(self.ended.len());
        for key in &keys {
            let row = locked.rows.get(key).ok_or(Error::Conflict(None))?;
            let before = row.replica()?;
            let expected = if self.ended.contains(key) { Standing::Missing } else { Standing::Underway };
            if Standing::of(Some(before.status())) != expected {
                return Err(Error::Conflict(None));
            }
            if expected == Standing::Missing {
                let after = before.apply(Event::Request, now).map_err(|_| Error::Conflict(None))?;
                again.push(row.followed_by(&key.0, &key.1, &after));
            }
        }
        Ok(again)
    }
}

fn insert_synchronizations(sql: Sql, rows: Vec<[Cell; 12]>, now: Timestamp) -> Sql {
    let columns = [
        ("request_id", Kind::Uuid),
        ("image_id", Kind::Name),
        ("principal", Kind::Text),
        ("client_token", Kind::MaybeText),
        ("asked", Kind::Text),
        ("targets", Kind::Text),
        ("open", Kind::Number),
        ("traceparent", Kind::MaybeText),
        ("tracestate", Kind::MaybeText),
        ("state", Kind::Name),
        ("finished_at", Kind::MaybeNumber),
        ("overwrite", Kind::MaybeNumber),
    ];
    sql.insert("synchronization", Rows::new(columns, rows), [("created_at", now.as_millis().into())])
}

fn insert_replicas(sql: Sql, missing: &[Key], now: Timestamp) -> Sql {
    let requested = Replica::requested(now);
    let constants = [
        ("state", requested.status().as_str().into()),
        ("due_at", now.as_millis().into()),
        ("fence", entity::signed(requested.fence).into()),
    ];
    sql.insert("replica", replica::handed(missing), constants)
}
