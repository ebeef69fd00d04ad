//! One group of calls: what must be known to decide about them, the decisions, and the rows that come of them.
//!
//! A group is one question to the database and two kinds of rows that are written, whole lists of them at a time.

use std::collections::HashMap;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult, Statement, Value};
use serde::{Serialize, de::DeserializeOwned};

use super::{super::connection::execute, Ask};
use crate::{
    domain::{
        ClientToken, ImageId, Refusal, RegionId, RegionStatus, Regions, Replica, RequestId, Standing, Step,
        SynchronizationState, Timestamp, accept,
    },
    state::{
        Error, Result,
        entity::{self, parse},
    },
};

/// Rows that one statement inserts at most: SQLite takes 32,766 values for one (<https://sqlite.org/limits.html>).
const MOST_ROWS: usize = 512;

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
    fence: u64,
}

/// An earlier call with the same token.
#[derive(Debug, Clone)]
struct Repeated {
    request_id: RequestId,
    parameters: String,
}

/// The answer to everything that is asked of the database about a group, each list as one JSON array: a row for every entry
/// would have to be handed from the database's thread to this one.
#[derive(FromQueryResult)]
struct Answer {
    homes: String,
    replicas: String,
    tokens: String,
}

impl Known {
    /// Reads what the group needs.
    pub async fn read(txn: &DatabaseTransaction, asks: &[Ask]) -> Result<Self> {
        const READ: &str = "SELECT \
            (SELECT json_group_array(json_array(image.id, image.home_region)) \
             FROM (SELECT DISTINCT value FROM json_each(?1)) AS wanted CROSS JOIN image ON image.id = wanted.value) AS homes, \
            (SELECT json_group_array(json_array(replica.image_id, replica.region_id, replica.state, replica.fence)) \
             FROM (SELECT DISTINCT value FROM json_each(?1)) AS wanted CROSS JOIN replica ON replica.image_id = wanted.value) \
             AS replicas, \
            (SELECT json_group_array(json_array(s.principal, s.client_token, hex(s.request_id), s.image_id, s.asked)) \
             FROM json_each(?2) AS wanted CROSS JOIN synchronization AS s \
             ON s.principal = wanted.value ->> 0 AND s.client_token = wanted.value ->> 1) AS tokens";
        let images: Vec<&str> = asks.iter().map(|ask| ask.image.as_str()).collect();
        let tokens: Vec<_> = asks
            .iter()
            .filter_map(|ask| ask.token.as_ref().map(|token| (ask.principal.as_str(), token.as_str())))
            .collect();
        let values = [json(&images)?.into(), json(&tokens)?.into()];
        let statement = Statement::from_sql_and_values(txn.get_database_backend(), READ, values);
        let answer = Answer::find_by_statement(statement).one(txn).await?;
        let answer = answer.ok_or_else(|| DbErr::RecordNotFound("the answer about a group of calls".to_owned()))?;

        let mut known = Self::default();
        for (image, home) in from_json::<(String, String)>(&answer.homes)? {
            known.homes.insert(image, parse("image.home_region", &home)?);
        }
        for (image, region, status, fence) in from_json::<(String, String, String, u64)>(&answer.replicas)? {
            let ahead = Ahead { status: parse("replica.state", &status)?, fence };
            known.replicas.entry(image).or_default().push((parse("replica.region_id", &region)?, ahead));
        }
        for (principal, token, request_id, image, asked) in
            from_json::<(String, String, String, String, String)>(&answer.tokens)?
        {
            let repeated = Repeated {
                request_id: parse("synchronization.request_id", &request_id)?,
                parameters: parameters(&image, &asked),
            };
            known.tokens.insert((principal, token), repeated);
        }
        Ok(known)
    }

    fn replica(&self, image: &ImageId, region: &RegionId) -> Option<Ahead> {
        self.replicas.get(image.as_str())?.iter().find(|(r, _)| r == region).map(|(_, ahead)| *ahead)
    }

    fn set_replica(&mut self, image: &ImageId, region: &RegionId, ahead: Ahead) {
        let of_image = self.replicas.entry(image.to_string()).or_default();
        match of_image.iter_mut().find(|(r, _)| r == region) {
            Some((_, known)) => *known = ahead,
            None => of_image.push((region.clone(), ahead)),
        }
    }
}

/// The rows that a group of calls writes.
#[derive(Debug, Default)]
pub struct Rows {
    synchronizations: Vec<[Value; 12]>,
    replicas: Vec<[Value; 4]>,
}

/// Decides about the calls in their order; each sees what those before it have started.
pub fn decide(asks: &[Ask], mut known: Known, regions: &Regions, now: Timestamp) -> (Vec<Result<RequestId>>, Rows) {
    let mut rows = Rows::default();
    let answers = asks.iter().map(|ask| decide_one(ask, &mut known, regions, now, &mut rows)).collect();
    (answers, rows)
}

fn decide_one(ask: &Ask, known: &mut Known, regions: &Regions, now: Timestamp, rows: &mut Rows) -> Result<RequestId> {
    let asked = ask.targets.canonical();
    let parameters = parameters(ask.image.as_str(), &asked);
    let token = ask.token.as_ref().map(|token| (ask.principal.clone(), token.as_str().to_owned()));
    if let Some(repeated) = token.as_ref().and_then(|token| known.tokens.get(token)) {
        return if repeated.parameters == parameters {
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

    for (region, _) in accepted.0.iter().filter(|(_, step)| *step == Step::Start) {
        let replica = match known.replica(&ask.image, region) {
            None => Replica::requested(now),
            Some(ended) => Replica::requested_again(ended.fence, now),
        };
        let (due, fence) = (now.as_millis(), entity::signed(replica.fence));
        rows.replicas.push([ask.image.as_str().into(), region.as_str().into(), due.into(), fence.into()]);
        known.set_replica(&ask.image, region, Ahead { status: replica.status(), fence: replica.fence });
    }
    let targets: Vec<&str> = accepted.0.iter().map(|(region, _)| region.as_str()).collect();
    let state = SynchronizationState::of(targets.iter().map(|_| RegionStatus::Pending));
    let trace = ask.trace.as_ref();
    rows.synchronizations.push([
        ask.request_id.as_uuid().into(),
        ask.image.as_str().into(),
        ask.principal.as_str().into(),
        ask.token.as_ref().map(ClientToken::as_str).into(),
        asked.into(),
        targets.join(",").into(),
        (targets.len() as u64).into(),
        trace.map(|t| t.parent.as_str()).into(),
        trace.and_then(|t| t.state.as_deref()).into(),
        state.as_str().into(),
        now.as_millis().into(),
        state.is_terminal().then_some(now.as_millis()).into(),
    ]);
    if let Some(token) = token {
        known.tokens.insert(token, Repeated { request_id: ask.request_id, parameters });
    }
    Ok(ask.request_id)
}

impl Rows {
    /// Writes them.
    pub async fn write(self, txn: &DatabaseTransaction) -> Result<()> {
        let into = "synchronization (request_id, image_id, principal, client_token, asked, targets, open, traceparent, \
                    tracestate, state, created_at, finished_at)";
        insert(txn, into, "*", self.synchronizations, "").await?;
        let into = "replica (image_id, region_id, due_at, fence, state)";
        let afresh = "ON CONFLICT (image_id, region_id) DO UPDATE SET state = excluded.state, due_at = excluded.due_at, \
                      fence = excluded.fence, attempt = 0, faults = 0, lease_owner = NULL, bytes_total = 0, \
                      bytes_copied = 0, bytes_skipped = 0, fault_kind = NULL, fault_message = NULL, started_at = NULL, \
                      finished_at = NULL";
        insert(txn, into, "*, 'PENDING'", self.replicas, afresh).await
    }
}

/// Inserts rows, whose first column is never null. The statement's text knows of their number only the next power of two, and
/// the rest is filled up with rows that it leaves out: so it is one of a few texts, and each is prepared once.
async fn insert<const N: usize>(
    txn: &DatabaseTransaction,
    into: &str,
    select: &str,
    rows: Vec<[Value; N]>,
    conflict: &str,
) -> Result<()> {
    let row = format!("({})", ["?"; N].join(","));
    let mut rows = rows.into_iter();
    while rows.len() > 0 {
        let taken = rows.len().min(MOST_ROWS);
        let count = taken.next_power_of_two();
        let values = vec![row.as_str(); count].join(",");
        let sql =
            format!("INSERT INTO {into} SELECT {select} FROM (VALUES {values}) WHERE column1 IS NOT NULL {conflict}");
        let filling = std::iter::repeat_n(Value::Int(None), (count - taken) * N);
        execute(txn, &sql, rows.by_ref().take(taken).flatten().chain(filling)).await?;
    }
    Ok(())
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
