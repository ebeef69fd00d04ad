//! One group of calls: what must be known to decide about them, the decisions, and the rows that come of them.
//!
//! A group is one question to the database and two kinds of rows that are written, whole lists of them at a time.

use std::collections::{BTreeSet, HashMap};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, FromQueryResult, Statement};
use serde::{Serialize, de::DeserializeOwned};
use tracing::{Instrument as _, instrument};
use uuid::Uuid;

use super::Ask;
use crate::{
    domain::{
        Event, ImageId, Refusal, RegionId, RegionStatus, Regions, Replica, RequestId, Standing, Step,
        SynchronizationState, Timestamp, accept,
    },
    state::{
        Error, Result,
        entity::{self, parse},
        replica::{self, Key, Lock},
        sql::{Cell, Kind, Rows, Sql, now},
    },
};

/// What the database says about a group of calls.
#[derive(Debug, Default)]
pub struct Known {
    homes: HashMap<String, RegionId>,
    replicas: HashMap<String, Vec<(RegionId, Ahead)>>,
    tokens: HashMap<(String, String), Repeated>,
}

/// What a call finds of a replica.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    status: RegionStatus,
    /// Whether a call of the same group has asked for it.
    ours: bool,
}

/// An earlier call with the same token.
#[derive(Debug, Clone)]
struct Repeated {
    request_id: RequestId,
    parameters: String,
}

impl Known {
    /// Reads what the group needs, and the time by the database's clock.
    #[instrument(name = "step: read", level = "trace", skip_all)]
    pub async fn read(db: &impl ConnectionTrait, asks: &[Ask]) -> Result<(Self, Timestamp)> {
        let images: BTreeSet<&str> = asks.iter().map(|ask| ask.image.as_str()).collect();
        let tokens: BTreeSet<(&str, &str)> = asks
            .iter()
            .filter_map(|ask| ask.token.as_ref().map(|token| (ask.principal.as_str(), token.as_str())))
            .collect();
        if db.get_database_backend() == DbBackend::Sqlite {
            Self::read_embedded(db, &images, &tokens).await
        } else {
            Self::read_served(db, &images, &tokens).await
        }
    }

    /// One question, whose answer is one row, each list as one JSON array: a row for every entry would have to be handed from the
    /// database's thread to this one.
    async fn read_embedded(
        db: &impl ConnectionTrait,
        images: &BTreeSet<&str>,
        tokens: &BTreeSet<(&str, &str)>,
    ) -> Result<(Self, Timestamp)> {
        #[derive(FromQueryResult)]
        struct Answer {
            homes: String,
            replicas: String,
            tokens: String,
            now_millis: i64,
        }
        let read = format!(
            "SELECT \
            (SELECT json_group_array(json_array(image.id, image.home_region)) \
             FROM json_each(?1) AS wanted CROSS JOIN image ON image.id = wanted.value) AS homes, \
            (SELECT json_group_array(json_array(replica.image_id, replica.region_id, replica.state)) \
             FROM json_each(?1) AS wanted CROSS JOIN replica ON replica.image_id = wanted.value) \
             AS replicas, \
            (SELECT json_group_array(json_array(s.principal, s.client_token, hex(s.request_id), s.image_id, s.asked)) \
             FROM json_each(?2) AS wanted CROSS JOIN synchronization AS s \
             ON s.principal = wanted.value ->> 0 AND s.client_token = wanted.value ->> 1) AS tokens, \
            {} AS now_millis",
            now(DbBackend::Sqlite)
        );
        let values = [json(images)?.into(), json(tokens)?.into()];
        let statement = Statement::from_sql_and_values(DbBackend::Sqlite, read, values);
        let answer = Answer::find_by_statement(statement).one(db).await?;
        let answer = answer.ok_or_else(|| DbErr::RecordNotFound("the answer about a group of calls".to_owned()))?;
        let mut known = Self::default();
        for (image, home) in from_json::<(String, String)>(&answer.homes)? {
            known.note_home(image, &home)?;
        }
        for (image, region, status) in from_json::<(String, String, String)>(&answer.replicas)? {
            known.note_replica(image, &region, &status)?;
        }
        for (principal, token, request_id, image, asked) in
            from_json::<(String, String, String, String, String)>(&answer.tokens)?
        {
            let request_id = parse("synchronization.request_id", &request_id)?;
            known.note_token((principal, token), request_id, &image, &asked);
        }
        Ok((known, Timestamp::from_millis(answer.now_millis)))
    }

    /// Nothing is locked: what the group relies on is looked at again, under a lock, when it is written.
    async fn read_served(
        db: &impl ConnectionTrait,
        images: &BTreeSet<&str>,
        tokens: &BTreeSet<(&str, &str)>,
    ) -> Result<(Self, Timestamp)> {
        #[derive(FromQueryResult)]
        struct Found {
            id: String,
            home_region: String,
            region_id: Option<String>,
            state: Option<String>,
            now_millis: i64,
        }
        #[derive(FromQueryResult)]
        struct Earlier {
            principal: String,
            client_token: String,
            request_id: Uuid,
            image_id: String,
            asked: String,
        }
        let mut known = Self::default();
        let mut time = 0;
        let wanted = || Rows::new([("id", Kind::Name)], images.iter().map(|image| [(*image).into()]));
        if db.get_database_backend() == DbBackend::MySql {
            // Two who insert the same key end in a deadlock there, and not in a duplicate: whoever asks for the same image waits.
            // Such a lock costs nothing that is written.
            Sql::on(db)
                .text("SELECT i.id FROM ")
                .rows(wanted())
                .join()
                .text("image AS i ON i.id = w.id ORDER BY i.id")
                .lock("i")
                .execute(db)
                .await?;
        }
        let found: Vec<Found> = Sql::on(db)
            .text("SELECT i.id, i.home_region, r.region_id, r.state, ")
            .now()
            .text(" AS now_millis FROM ")
            .rows(wanted())
            .join()
            .text("image AS i ON i.id = w.id LEFT JOIN replica AS r ON r.image_id = i.id")
            .all(db)
            .await?;
        for row in found {
            time = row.now_millis;
            if let (Some(region), Some(state)) = (row.region_id, row.state) {
                known.note_replica(row.id.clone(), &region, &state)?;
            }
            known.note_home(row.id, &row.home_region)?;
        }
        if !tokens.is_empty() {
            let rows = tokens.iter().map(|(principal, token)| [(*principal).into(), (*token).into()]);
            let found: Vec<Earlier> = Sql::on(db)
                .text("SELECT s.principal, s.client_token, s.request_id, s.image_id, s.asked FROM ")
                .rows(Rows::new([("principal", Kind::Text), ("token", Kind::Name)], rows))
                .join()
                .text("synchronization AS s ON s.principal = w.principal AND s.client_token = w.token")
                .all(db)
                .await?;
            for row in found {
                let token = (row.principal, row.client_token);
                known.note_token(token, row.request_id.into(), &row.image_id, &row.asked);
            }
        }
        Ok((known, Timestamp::from_millis(time)))
    }

    fn note_home(&mut self, image: String, home: &str) -> Result<()> {
        self.homes.insert(image, parse("image.home_region", home)?);
        Ok(())
    }

    fn note_replica(&mut self, image: String, region: &str, status: &str) -> Result<()> {
        let ahead = Ahead { status: parse("replica.state", status)?, ours: false };
        self.replicas.entry(image).or_default().push((parse("replica.region_id", region)?, ahead));
        Ok(())
    }

    fn note_token(&mut self, token: (String, String), request_id: RequestId, image: &str, asked: &str) {
        self.tokens.insert(token, Repeated { request_id, parameters: parameters(image, asked) });
    }

    fn replica(&self, image: &ImageId, region: &RegionId) -> Option<Ahead> {
        self.replicas.get(image.as_str())?.iter().find(|(r, _)| r == region).map(|(_, ahead)| *ahead)
    }

    fn set_replica(&mut self, image: &ImageId, region: &RegionId, ahead: Ahead) {
        match self.replicas.get_mut(image.as_str()) {
            None => drop(self.replicas.insert(image.to_string(), vec![(region.clone(), ahead)])),
            Some(of_image) => match of_image.iter_mut().find(|(r, _)| r == region) {
                Some((_, known)) => *known = ahead,
                None => of_image.push((region.clone(), ahead)),
            },
        }
    }
}

/// The rows that a group of calls writes, and those that it relies on.
#[derive(Debug, Default)]
pub struct Changes {
    synchronizations: Vec<[Cell; 11]>,
    /// Replicas that are not there.
    missing: BTreeSet<Key>,
    /// Replicas that have failed or were canceled, and are asked for again.
    ended: BTreeSet<Key>,
    /// Replicas that others have asked for and that must not have ended.
    joined: BTreeSet<Key>,
}

/// Decides about the calls in their order; each sees what those before it have started.
#[instrument(name = "step: decide", level = "trace", skip_all)]
pub fn decide(asks: &[Ask], mut known: Known, regions: &Regions, now: Timestamp) -> (Vec<Result<RequestId>>, Changes) {
    let mut rows = Changes::default();
    let answers = asks.iter().map(|ask| decide_one(ask, &mut known, regions, now, &mut rows)).collect();
    (answers, rows)
}

fn decide_one(
    ask: &Ask,
    known: &mut Known,
    regions: &Regions,
    now: Timestamp,
    rows: &mut Changes,
) -> Result<RequestId> {
    let asked = ask.targets.canonical();
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
    let home = known.homes.get(ask.image.as_str());
    let standing = |region: &RegionId| Standing::of(known.replica(&ask.image, region).map(|r| r.status));
    let accepted = accept(&ask.targets, regions, home, standing).map_err(|refusal| match refusal {
        Refusal::ImageNotFound => Error::ImageNotFound(ask.image.clone()),
        Refusal::AlreadyThere(regions) => Error::ImageAlreadyThere { image: ask.image.clone(), regions },
    })?;

    for (region, step) in &accepted.0 {
        let key = (ask.image.clone(), region.clone());
        let ahead = known.replica(&ask.image, region);
        match step {
            Step::Start => {
                let rows = if ahead.is_none() { &mut rows.missing } else { &mut rows.ended };
                rows.insert(key);
                known.set_replica(&ask.image, region, Ahead { status: RegionStatus::Pending, ours: true });
            }
            Step::Join if ahead.is_some_and(|ahead| ahead.ours) => {}
            Step::Join => drop(rows.joined.insert(key)),
        }
    }
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
    ]);
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

    /// Commits them.
    pub async fn commit(self, txn: DatabaseTransaction, now: Timestamp) -> Result<()> {
        let again = self.request_again(&txn, now).await?;
        self.write(&txn, again, now).await?;
        Ok(txn.commit().instrument(tracing::trace_span!("step: commit")).await?)
    }

    /// Writes them, and the replicas that are asked for again. On PostgreSQL it is one statement if there are none of these.
    #[instrument(name = "step: write", level = "trace", skip_all)]
    pub async fn write(
        self,
        db: &impl ConnectionTrait,
        again: Vec<entity::replica::Model>,
        now: Timestamp,
    ) -> Result<()> {
        if self.synchronizations.is_empty() {
            return Ok(());
        }
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
        ];
        let rows = Rows::new(columns, self.synchronizations);
        let insert = Sql::on(db).insert("synchronization", rows, [("created_at", now.as_millis().into())]);
        if self.missing.is_empty() {
            insert.execute(db).await?;
        } else {
            let requested = Replica::requested(now);
            let constants = [
                ("state", requested.status().as_str().into()),
                ("due_at", now.as_millis().into()),
                ("fence", entity::signed(requested.fence).into()),
            ];
            let replicas = |sql: Sql| sql.insert("replica", replica::handed(&self.missing), constants);
            if db.get_database_backend() == DbBackend::Postgres {
                // Both at once: a way to the database and back less.
                insert.and("accepted", replicas).execute(db).await?;
            } else {
                insert.execute(db).await?;
                replicas(Sql::on(db)).execute(db).await?;
            }
        }
        replica::save(db, again).await
    }

    /// Locks the replicas that are there and that the group relies on, makes sure that it still may, and asks for those again that
    /// have ended; where others have changed them meanwhile, returns a conflict. A replica that is joined can't end any more before
    /// the group is committed; whoever ends it then finds the synchronizations that wait for it.
    #[instrument(name = "step: lock", level = "trace", skip_all)]
    async fn request_again(&self, txn: &DatabaseTransaction, now: Timestamp) -> Result<Vec<entity::replica::Model>> {
        // On SQLite nobody else writes meanwhile.
        let alone = txn.get_database_backend() == DbBackend::Sqlite;
        let joined = self.joined.iter().filter(|_| !alone);
        let keys: Vec<Key> = self.ended.iter().chain(joined).cloned().collect();
        if keys.is_empty() {
            return Ok(Vec::new());
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

/// What a repeated call must have in common with the first.
fn parameters(image: &str, targets: &str) -> String {
    format!("{image} {targets}")
}

fn json(rows: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(rows).map_err(|error| DbErr::Json(error.to_string()))?)
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    Ok(serde_json::from_str(text).map_err(|error| DbErr::Json(error.to_string()))?)
}
