//! One group of calls: what must be known to decide about them, the decisions, and the rows that come of them.
//!
//! Each statement takes the whole group as one JSON array, so that its text never changes and it is prepared once.

use std::{collections::HashMap, fmt::Display, str::FromStr};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult, Statement};
use serde::{Serialize, de::DeserializeOwned};

use super::{super::connection::execute, Ask};
use crate::{
    domain::{
        ImageId, Refusal, RegionId, RegionStatus, Regions, Replica, RequestId, Standing, Step, SynchronizationState,
        Timestamp, accept,
    },
    state::{Error, Result, entity},
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
            known.homes.insert(image, parse(&home)?);
        }
        for (image, region, status, fence) in from_json::<(String, String, String, u64)>(&answer.replicas)? {
            let ahead = Ahead { status: parse(&status)?, fence };
            known.replicas.entry(image).or_default().push((parse(&region)?, ahead));
        }
        for (principal, token, request_id, image, asked) in
            from_json::<(String, String, String, String, String)>(&answer.tokens)?
        {
            let repeated = Repeated { request_id: parse(&request_id)?, parameters: parameters(&image, &asked) };
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

/// The rows that a group of calls writes. What they have in common is bound once.
#[derive(Debug, Default)]
pub struct Rows {
    synchronizations: Vec<SynchronizationRow>,
    replicas: Vec<ReplicaRow>,
    /// Above every fence that one of the replicas had before.
    fence: u64,
}

/// request id, image, principal, token, asked, targets, open, traceparent, tracestate, state
type SynchronizationRow =
    (String, String, String, Option<String>, String, String, usize, Option<String>, Option<String>, &'static str);

/// image, region
type ReplicaRow = (String, String);

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
        rows.fence = rows.fence.max(replica.fence);
        rows.replicas.push((ask.image.to_string(), region.to_string()));
        known.set_replica(&ask.image, region, Ahead { status: replica.status(), fence: replica.fence });
    }
    let targets: Vec<&str> = accepted.0.iter().map(|(region, _)| region.as_str()).collect();
    rows.synchronizations.push((
        ask.request_id.as_uuid().simple().to_string(),
        ask.image.to_string(),
        ask.principal.clone(),
        token.as_ref().map(|(_, token)| token.clone()),
        asked,
        targets.join(","),
        targets.len(),
        ask.trace.as_ref().map(|t| t.parent.clone()),
        ask.trace.as_ref().and_then(|t| t.state.clone()),
        SynchronizationState::of(targets.iter().map(|_| RegionStatus::Pending)).as_str(),
    ));
    if let Some(token) = token {
        known.tokens.insert(token, Repeated { request_id: ask.request_id, parameters });
    }
    Ok(ask.request_id)
}

impl Rows {
    /// Writes them.
    pub async fn write(self, txn: &DatabaseTransaction, now: Timestamp) -> Result<()> {
        const SYNCHRONIZATIONS: &str = "INSERT INTO synchronization (request_id, image_id, principal, client_token, asked, \
            targets, open, traceparent, tracestate, state, created_at, finished_at) \
            SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, \
            value ->> 7, value ->> 8, value ->> 9, ?2, iif(value ->> 6 = 0, ?2, NULL) FROM json_each(?1)";
        const REPLICAS: &str = "INSERT INTO replica (image_id, region_id, state, due_at, fence) \
            SELECT value ->> 0, value ->> 1, 'PENDING', ?2, ?3 FROM json_each(?1) WHERE true \
            ON CONFLICT (image_id, region_id) DO UPDATE SET state = excluded.state, due_at = excluded.due_at, \
            fence = excluded.fence, attempt = 0, faults = 0, lease_owner = NULL, bytes_total = 0, bytes_copied = 0, \
            bytes_skipped = 0, fault_kind = NULL, fault_message = NULL, started_at = NULL, finished_at = NULL";
        let now = now.as_millis();
        if !self.synchronizations.is_empty() {
            execute(txn, SYNCHRONIZATIONS, [json(&self.synchronizations)?.into(), now.into()]).await?;
        }
        if !self.replicas.is_empty() {
            let fence = entity::signed(self.fence);
            execute(txn, REPLICAS, [json(&self.replicas)?.into(), now.into(), fence.into()]).await?;
        }
        Ok(())
    }
}

/// What a repeated call must have in common with the first.
fn parameters(image: &str, targets: &str) -> String {
    format!("{image} {targets}")
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T> {
    Ok(text.parse().map_err(|error| DbErr::Type(format!("the database holds {text:?}: {error}")))?)
}

fn json(rows: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(rows).map_err(|error| DbErr::Json(error.to_string()))?)
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    Ok(serde_json::from_str(text).map_err(|error| DbErr::Json(error.to_string()))?)
}
