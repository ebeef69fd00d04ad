//! The final check: every acknowledged call has ended with the right outcome, and every replica that is reported
//! AVAILABLE is complete.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use tokio::time::Instant;

use super::{Outcome, cluster::Cluster, ledger::Ledger};
use crate::harness::{database, images};

/// How long accepted work may take to end after the last failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until all accepted work has ended, and checks the outcome.
pub async fn judge(cluster: &Cluster, ledger: &Ledger, outcome: &mut Outcome) {
    let db = database::look(&cluster.url()).await;
    let started = Instant::now();
    while count(&db, "synchronization WHERE state = 'RUNNING'").await > 0 && started.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    outcome.notes.push(format!("all work had ended {:?} after the last failure", started.elapsed()));

    report_stuck(&db, cluster, outcome).await;
    compare_ledger(&db, ledger, outcome).await;
    compare_regions(&db, outcome).await;
    verify_replicas(&db, cluster, outcome).await;
}

/// Reports the database rows and the log lines about the replicas that accepted calls still wait for.
async fn report_stuck(db: &DatabaseConnection, cluster: &Cluster, outcome: &mut Outcome) {
    let running = "SELECT image_id FROM synchronization WHERE state = 'RUNNING'";
    let replicas = format!(
        "SELECT image_id AS id, row_to_json(r)::text AS row FROM replica AS r WHERE image_id IN ({running}) \
         AND state IN ('PENDING', 'COPYING')"
    );
    let synchronizations =
        "SELECT image_id AS id, row_to_json(s)::text AS row FROM synchronization AS s WHERE state = 'RUNNING'";
    let targets = format!(
        "SELECT image_id AS id, row_to_json(t)::text AS row FROM synchronization_target AS t \
         JOIN synchronization AS s USING (request_id) WHERE image_id IN ({running})"
    );
    for (table, ask) in [("replica", replicas.as_str()), ("synchronization", synchronizations), ("target", &targets)] {
        for row in rows(db, ask).await.into_iter().take(20) {
            let text = |column: &str| row.try_get::<String>("", column).expect("text");
            outcome.notes.push(format!("not ended: {table} {}", text("row")));
            if table == "replica" {
                outcome.notes.extend(cluster.last_logged(&text("id"), 10));
            }
        }
    }
}

/// Checks that the database has every acknowledged call, with the right outcome.
async fn compare_ledger(db: &DatabaseConnection, ledger: &Ledger, outcome: &mut Outcome) {
    let mut states: HashMap<String, (String, String)> = HashMap::new();
    for row in rows(db, "SELECT upper(request_id::text) AS id, state, image_id FROM synchronization").await {
        let text = |column: &str| row.try_get::<String>("", column).expect("text");
        states.insert(text("id"), (text("state"), text("image_id")));
    }
    let mut faults: HashMap<String, String> = HashMap::new();
    let ask = "SELECT upper(request_id::text) AS id, string_agg(concat_ws(' ', region_id, status, fault_kind, fault_message), '; ') \
               AS why FROM synchronization_target WHERE status <> 'AVAILABLE' GROUP BY request_id";
    for row in rows(db, ask).await {
        let text = |column: &str| row.try_get::<String>("", column).expect("text");
        faults.insert(text("id"), text("why"));
    }
    let entries = ledger.entries();
    outcome.acknowledged = entries.len();
    outcome.canceled = entries.iter().filter(|entry| entry.canceled).count();
    for entry in &entries {
        let call = format!("{} of {} to {:?}", entry.request_id, entry.app, entry.targets);
        match states.get(&entry.request_id).map(|(state, image)| (state.as_str(), image.as_str())) {
            None => outcome.lost.push(format!("{call}: unknown")),
            Some(("RUNNING", _)) => outcome.lost.push(format!("{call}: has not ended")),
            Some((_, image)) if image != entry.app => outcome.wrong.push(format!("{call}: is for {image}")),
            Some(("SUCCEEDED", _)) => {}
            Some(("CANCELED", _)) if entry.canceled => {}
            Some((state, _)) => {
                let why = faults.get(&entry.request_id).map(String::as_str).unwrap_or_default();
                outcome.wrong.push(format!("{call}: {state} {why}"));
            }
        }
    }
}

/// Checks that the states of synchronizations, of their regions, and of replicas are consistent.
async fn compare_regions(db: &DatabaseConnection, outcome: &mut Outcome) {
    // Finds calls whose state contradicts the states of their regions.
    let contradictions = "SELECT upper(s.request_id::text) AS id FROM synchronization AS s \
        LEFT JOIN synchronization_target AS t USING (request_id) GROUP BY s.request_id, s.state, s.targets \
        HAVING (s.state = 'SUCCEEDED' AND bool_or(t.status <> 'AVAILABLE')) \
        OR (s.targets <> '' AND count(t.region_id) <> array_length(string_to_array(s.targets, ','), 1))";
    for row in rows(db, contradictions).await {
        outcome.wrong.push(format!("{}: its regions contradict it", row.try_get::<String>("", "id").expect("text")));
    }
    // Finds calls that reported an image as AVAILABLE in a region where its replica is not.
    let gone = "SELECT upper(t.request_id::text) AS id FROM synchronization_target AS t JOIN synchronization AS s USING (request_id) \
        JOIN replica AS r ON r.image_id = s.image_id AND r.region_id = t.region_id \
        WHERE t.status = 'AVAILABLE' AND r.state <> 'AVAILABLE'";
    for row in rows(db, gone).await {
        outcome
            .wrong
            .push(format!("{}: a region lost the image again", row.try_get::<String>("", "id").expect("text")));
    }
}

/// Reads and verifies every replica that is reported AVAILABLE.
async fn verify_replicas(db: &DatabaseConnection, cluster: &Cluster, outcome: &mut Outcome) {
    let ask = "SELECT r.image_id, r.region_id, i.root_digest FROM replica AS r JOIN image AS i ON i.id = r.image_id \
               WHERE r.state = 'AVAILABLE'";
    let client = reqwest::Client::new();
    let read = stream::iter(rows(db, ask).await).map(|row| {
        let text = |column: &str| row.try_get::<String>("", column).expect("text");
        let (image, region, root) = (text("image_id"), text("region_id"), text("root_digest"));
        let client = client.clone();
        async move {
            let whole = match region.as_str() {
                "cn-shanghai" => in_registry(&client, &cluster.registries[0].address.to_string(), &image, &root).await,
                super::cluster::NARROW => {
                    in_registry(&client, &cluster.registries[1].address.to_string(), &image, &root).await
                }
                _ => in_directory(&cluster.layout(&region, &image), &root),
            };
            (format!("{image} in {region}"), whole)
        }
    });
    let mut read = read.buffer_unordered(8);
    while let Some((what, whole)) = read.next().await {
        outcome.verified += 1;
        if let Err(problem) = whole {
            outcome.damaged.push(format!("{what}: {problem}"));
        }
    }
}

async fn rows(db: &DatabaseConnection, ask: &str) -> Vec<sea_orm::QueryResult> {
    db.query_all_raw(Statement::from_string(DbBackend::Postgres, ask.to_owned())).await.expect("the database answers")
}

async fn count(db: &DatabaseConnection, of: &str) -> i64 {
    let read = rows(db, &format!("SELECT count(*) AS n FROM {of}")).await;
    read[0].try_get("", "n").expect("a number")
}

fn in_directory(layout: &std::path::Path, root: &str) -> Result<(), String> {
    let read = std::panic::catch_unwind(|| images::verify(layout)).map_err(|_| "it is not whole".to_owned())?;
    if read == root { Ok(()) } else { Err(format!("its root is {read}")) }
}

/// Pulls an image from a registry as an ordinary client does, and verifies its digests.
async fn in_registry(client: &reqwest::Client, host: &str, image: &str, root: &str) -> Result<(), String> {
    let get = async |path: String| {
        let request = client.get(format!("http://{host}/v2/apps/images/{path}")).header("accept", images::MANIFEST);
        let answer = request.send().await.and_then(reqwest::Response::error_for_status).map_err(|e| e.to_string())?;
        answer.bytes().await.map_err(|error| error.to_string())
    };
    let manifest = get(format!("manifests/{image}")).await?;
    if images::digest(&manifest) != root {
        return Err(format!("its manifest has the digest {}", images::digest(&manifest)));
    }
    let parsed: serde_json::Value = serde_json::from_slice(&manifest).map_err(|error| error.to_string())?;
    let blobs = parsed["layers"].as_array().into_iter().flatten().chain([&parsed["config"]]);
    for blob in blobs {
        let digest = blob["digest"].as_str().ok_or("a blob without a digest")?;
        if images::digest(&get(format!("blobs/{digest}")).await?) != digest {
            return Err(format!("{digest} has another one"));
        }
    }
    Ok(())
}
