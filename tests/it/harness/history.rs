//! The history of every replica. Database triggers record each version of each row, independently of the service. Every
//! step from one version to the next must be a transition of the domain's state machine.

use std::{collections::BTreeMap, time::Duration};

use appferry::domain::{
    Event, Fault, ImageId, Lease, Progress, RegionId, RegionStatus, Replica, ReplicaState, Timestamp, WorkerId,
};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, FromQueryResult, QueryResult, Statement};

use super::database;

const COLUMNS: [&str; 19] = [
    "image_id",
    "region_id",
    "state",
    "due_at",
    "waiting_since",
    "attempt",
    "faults",
    "fence",
    "lease_owner",
    "suspect",
    "bytes_total",
    "bytes_copied",
    "bytes_skipped",
    "fault_kind",
    "fault_message",
    "started_at",
    "finished_at",
    "verification",
    "warnings",
];

/// Installs the recording triggers in a database that has no rows yet.
pub async fn record(url: &str) {
    let db = database::look(url).await;
    let columns = COLUMNS.join(", ");
    let of = |row: &str| COLUMNS.map(|column| format!("{row}.{column}")).join(", ");
    let statements = match db.get_database_backend() {
        DbBackend::Postgres => vec![
            format!(
                "CREATE TABLE history AS SELECT 0::bigint AS place, ''::text AS change, {columns} FROM replica WHERE false"
            ),
            "CREATE SEQUENCE history_place".to_owned(),
            format!(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF TG_OP = 'DELETE' THEN INSERT INTO history SELECT nextval('history_place'), TG_OP, {}; RETURN OLD; \
                 ELSE INSERT INTO history SELECT nextval('history_place'), TG_OP, {}; RETURN NEW; END IF; END $$",
                of("OLD"),
                of("NEW")
            ),
            "CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON replica FOR EACH ROW EXECUTE FUNCTION note()"
                .to_owned(),
        ],
        backend => {
            let create = if backend == DbBackend::Sqlite {
                format!("CREATE TABLE history (place INTEGER PRIMARY KEY AUTOINCREMENT, change TEXT, {columns})")
            } else {
                "CREATE TABLE history LIKE replica".to_owned()
            };
            let mut statements = vec![create];
            if backend == DbBackend::MySql {
                statements.push(
                    "ALTER TABLE history DROP PRIMARY KEY, ADD COLUMN place BIGINT AUTO_INCREMENT PRIMARY KEY FIRST, \
                     ADD COLUMN `change` VARCHAR(8)"
                        .to_owned(),
                );
            }
            let quoted = if backend == DbBackend::MySql { "`change`" } else { "change" };
            for (change, row) in [("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")] {
                statements.push(format!(
                    "CREATE TRIGGER note_{} AFTER {change} ON replica FOR EACH ROW BEGIN \
                     INSERT INTO history ({quoted}, {columns}) VALUES ('{change}', {}); END",
                    change.to_lowercase(),
                    of(row)
                ));
            }
            statements
        }
    };
    for statement in statements {
        db.execute_unprepared(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    db.close().await.expect("it is closed");
}

/// One recorded version of a row of `replica`.
struct Version {
    change: String,
    key: (ImageId, RegionId),
    replica: Replica,
}

impl FromQueryResult for Version {
    fn from_query_result(row: &QueryResult, _: &str) -> Result<Self, DbErr> {
        let bad = |what: &dyn std::fmt::Display| DbErr::Type(what.to_string());
        let text = |column: &str| row.try_get::<String>("", column);
        let number = |column: &str| row.try_get::<i64>("", column);
        let count = |column: &str| Ok::<_, DbErr>(u64::try_from(number(column)?).unwrap_or_default());
        let time = |column: &str| Ok::<_, DbErr>(row.try_get::<Option<i64>>("", column)?.map(Timestamp::from_millis));
        let fault = match row.try_get::<Option<String>>("", "fault_kind")? {
            None => None,
            Some(kind) => Some(Fault {
                kind: kind.parse().map_err(|error| bad(&error))?,
                message: row.try_get::<Option<String>>("", "fault_message")?.unwrap_or_default().into(),
            }),
        };
        let due = || time("due_at")?.ok_or_else(|| bad(&"it has no due_at"));
        let status: RegionStatus = text("state")?.parse().map_err(|error| bad(&error))?;
        let state = match status {
            RegionStatus::Pending if due()?.as_millis() >= 253_402_300_799_000 => {
                ReplicaState::Suspended { reason: fault.ok_or_else(|| bad(&"it has no reason"))? }
            }
            RegionStatus::Pending => {
                let not_before = due()?;
                let since = time("waiting_since")?.unwrap_or(not_before);
                ReplicaState::Pending { since, not_before, last_fault: fault }
            }
            RegionStatus::Copying => {
                let lease = Lease { owner: WorkerId(text("lease_owner")?.into()), until: due()? };
                ReplicaState::Copying { lease, last_fault: fault }
            }
            RegionStatus::Available => {
                let verification = row.try_get::<Option<String>>("", "verification")?;
                ReplicaState::Available(verification.map(|text| text.parse().map_err(|error| bad(&error))).transpose()?)
            }
            RegionStatus::Failed => ReplicaState::Failed(fault.ok_or_else(|| bad(&"it has no fault"))?),
            RegionStatus::Canceled => ReplicaState::Canceled,
            RegionStatus::Superseded => ReplicaState::Superseded,
        };
        Ok(Self {
            change: text("change")?,
            key: (
                text("image_id")?.parse().map_err(|error| bad(&error))?,
                text("region_id")?.parse().map_err(|error| bad(&error))?,
            ),
            replica: Replica {
                state,
                attempt: u32::try_from(number("attempt")?).unwrap_or_default(),
                faults: u32::try_from(number("faults")?).unwrap_or_default(),
                fence: count("fence")?,
                suspect: row.try_get::<bool>("", "suspect")?,
                progress: Progress {
                    total: count("bytes_total")?,
                    copied: count("bytes_copied")?,
                    skipped: count("bytes_skipped")?,
                },
                started_at: time("started_at")?,
                finished_at: time("finished_at")?,
                warnings: row
                    .try_get::<Option<String>>("", "warnings")?
                    .unwrap_or_default()
                    .parse()
                    .map_err(|error| bad(&error))?,
            },
        })
    }
}

/// The result of a replay.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Number of replayed steps.
    pub steps: usize,
    /// Number of occurrences of each event.
    pub events: BTreeMap<&'static str, usize>,
}

/// Replays the recorded history of a database through the domain's transitions. `leases` contains the lease duration of
/// every worker.
///
/// # Panics
///
/// Panics if a recorded step is not a transition.
pub async fn replay(url: &str, leases: &[Duration]) -> Replayed {
    let db = database::look(url).await;
    let mut replayed = Replayed::default();
    let mut replicas: BTreeMap<(ImageId, RegionId), Replica> = BTreeMap::new();
    let mut fences: BTreeMap<(ImageId, RegionId), u64> = BTreeMap::new();
    let mut after = 0_i64;
    loop {
        let versions = page(&db, after).await;
        let Some((last, _)) = versions.last() else { break };
        after = *last;
        for (step, Version { change, key, replica }) in versions {
            let context = |what: &str| format!("{} in {}, step {step} ({change}): {what}", key.0, key.1);
            let before = replicas.get(&key);
            if change == "DELETE" {
                let before = before.unwrap_or_else(|| panic!("{}", context("it was not there")));
                assert!(before.outcome().is_some(), "{}", context("a copy was in flight"));
                replicas.remove(&key);
                continue;
            }
            let event = leases.iter().find_map(|lease| explain(before, &replica, *lease)).unwrap_or_else(|| {
                panic!("{}\n  {before:?}\n  {replica:?}", context("no transition leads from the one to the other"))
            });
            let fence = fences.entry(key.clone()).or_default();
            assert!(replica.fence >= *fence, "{}", context("the fence went back"));
            *fence = replica.fence;
            *replayed.events.entry(event).or_default() += 1;
            replayed.steps += 1;
            replicas.insert(key, replica);
        }
    }
    db.close().await.expect("it is closed");
    replayed
}

async fn page(db: &DatabaseConnection, after: i64) -> Vec<(i64, Version)> {
    let quoted = if db.get_database_backend() == DbBackend::MySql { "`change`" } else { "change" };
    let ask = format!(
        "SELECT place, {quoted}, {} FROM history WHERE place > {after} ORDER BY place LIMIT 10000",
        COLUMNS.join(", ")
    );
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), ask)).await.expect("the history");
    let read = |row: QueryResult| {
        (row.try_get("", "place").expect("a place"), Version::from_query_result(&row, "").expect("a version of a row"))
    };
    rows.into_iter().map(read).collect()
}

/// Returns the name of the event that leads from one version to the next; `None` if no event does.
pub fn explain(before: Option<&Replica>, after: &Replica, lease: Duration) -> Option<&'static str> {
    let Some(before) = before else {
        let ReplicaState::Pending { not_before, .. } = &after.state else { return None };
        return (Replica::requested(*not_before) == *after).then_some("Request");
    };
    candidates(before, after, lease)
        .into_iter()
        .find_map(|(name, event, now)| (before.apply(event, now) == Ok(after.clone())).then_some(name))
        .or_else(|| {
            // A progress report may be committed together with the next event.
            let renewal = Event::Renew { fence: before.fence, lease, progress: after.progress };
            let until = match &before.state {
                ReplicaState::Copying { lease, .. } => lease.until,
                _ => return None,
            };
            let renewed = before.apply(renewal, until).ok()?;
            candidates(&renewed, after, lease)
                .into_iter()
                .find_map(|(name, event, now)| (renewed.apply(event, now) == Ok(after.clone())).then_some(name))
        })
}

/// Returns the names of the events that may have led to `after`, with each event and its time.
fn candidates(before: &Replica, after: &Replica, lease: Duration) -> Vec<(&'static str, Event, Timestamp)> {
    let (fence, progress) = (before.fence, after.progress);
    let mut events = Vec::new();
    match &after.state {
        ReplicaState::Pending { since, not_before, last_fault } => {
            events.push(("Request", Event::Request, *since));
            events.push(("Release", Event::Release { fence }, *since));
            events.push(("Resume", Event::Resume, *since));
            events.push(("Expire", Event::Expire, *since));
            events.push(("ClockSetBack", Event::ClockSetBack { lease }, *since));
            if let Some(fault) = last_fault.clone() {
                let retry_after = Some(since.until(*not_before));
                events.push(("Faulted", Event::Faulted { fence, fault, retry_after, progress }, *since));
            }
        }
        ReplicaState::Suspended { reason } => {
            let now = match &before.state {
                ReplicaState::Copying { lease, .. } => lease.until,
                _ => Timestamp::from_millis(0),
            };
            events.push(("Suspend", Event::Suspend { reason: reason.clone() }, now));
        }
        ReplicaState::Copying { lease: held, .. } => {
            let lasted = i64::try_from(lease.as_millis()).expect("a lease");
            let now = Timestamp::from_millis(held.until.as_millis() - lasted);
            events.push(("Claim", Event::Claim { owner: held.owner.clone(), lease }, now));
            events.push(("Renew", Event::Renew { fence, lease, progress }, now));
            events.push(("ClockSetBack", Event::ClockSetBack { lease }, now));
        }
        ReplicaState::Available(verification) => {
            if let (Some(now), Some(verification)) = (after.finished_at, *verification) {
                events.push((
                    "Verified",
                    Event::Verified { fence, progress, verification, warnings: after.warnings.clone() },
                    now,
                ));
                events.push(("Confirmed", Event::Confirmed, now));
            }
        }
        ReplicaState::Superseded => {
            if let Some(now) = after.finished_at {
                events.push(("Supersede", Event::Supersede, now));
            }
        }
        ReplicaState::Failed(fault) => {
            if let Some(now) = after.finished_at {
                let fault = fault.clone();
                events.push(("Damaged", Event::Damaged { fault: fault.clone() }, now));
                events.push(("Faulted", Event::Faulted { fence, fault, retry_after: None, progress }, now));
            }
        }
        ReplicaState::Canceled => {
            if let Some(now) = after.finished_at {
                events.push(("Cancel", Event::Cancel, now));
            }
        }
    }
    events
}
