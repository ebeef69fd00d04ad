//! Database cost of a call and of a copy: statements, rows, and bytes of WAL.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use appferry::{
    db::{Db, NewSynchronization, Settings},
    domain::Targets,
};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Result, THREE, configured, fill::Fill, harness::postgres::Postgres, work};

const CALLS: usize = 20_000;

/// The statistics counters of a database.
struct Counters {
    statements: f64,
    rows: f64,
    log: f64,
}

async fn counters(db: &DatabaseConnection) -> Result<Counters> {
    let ask = "SELECT (SELECT sum(calls) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid \
               WHERE d.datname = current_database())::float8 AS statements, \
               (SELECT sum(rows) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid \
               WHERE d.datname = current_database())::float8 AS rows, \
               (pg_current_wal_insert_lsn() - '0/0')::float8 AS log";
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, ask)).await?.ok_or("no counters")?;
    Ok(Counters {
        statements: row.try_get("", "statements")?,
        rows: row.try_get("", "rows")?,
        log: row.try_get("", "log")?,
    })
}

fn print(what: &str, before: &Counters, after: &Counters, count: f64) {
    println!(
        "{what}: {:.3} statements, {:.1} rows, {:.0} bytes of log each",
        (after.statements - before.statements) / count,
        (after.rows - before.rows) / count,
        (after.log - before.log) / count
    );
}

pub async fn measure(server: &Postgres) -> Result<()> {
    let fill = Fill::new(server, "cost", THREE).await?;
    fill.pending(3).await?;
    let db = sea_orm::Database::connect(&fill.url).await?;
    db.execute_unprepared("CREATE EXTENSION pg_stat_statements").await?;
    db.execute_unprepared(&format!(
        "INSERT INTO image SELECT 'c' || n, 'bench', '1', '', 'VM', 'n', 'home', 'x', 'sha256:' || repeat('00', 32), 1, 1, 0 \
         FROM generate_series(1, {CALLS}) AS n"
    ))
    .await?;
    db.execute_unprepared("CHECKPOINT").await?;
    for in_flight in [1, 256] {
        let before = counters(&db).await?;
        let calls = if in_flight == 1 { 1_000 } else { CALLS - 1_000 };
        let first = if in_flight == 1 { 1 } else { 1_001 };
        accept(&fill.url, first, calls, in_flight).await?;
        let after = counters(&db).await?;
        print(&format!("a call, {in_flight} in flight"), &before, &after, f64::from(u32::try_from(calls)?));
    }
    let before = counters(&db).await?;
    let copies = CALLS * THREE;
    work::run(&fill.url, THREE, copies).await?;
    let after = counters(&db).await?;
    print("a copy, claimed and completed", &before, &after, f64::from(u32::try_from(copies)?));
    Ok(db.close().await?)
}

async fn accept(url: &str, first: usize, calls: usize, in_flight: usize) -> Result<()> {
    let stop = CancellationToken::new();
    let (state, tasks) = Db::open(&Settings::new(url.to_owned()), configured(THREE)?, stop.clone()).await?;
    let next = Arc::new(AtomicUsize::new(first));
    let mut callers: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..in_flight {
        let (state, next) = (state.clone(), Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let call = next.fetch_add(1, Ordering::Relaxed);
                if call >= first + calls {
                    return Ok(());
                }
                let ask = NewSynchronization {
                    request_id: appferry::new_request_id(),
                    image: format!("c{call}").parse()?,
                    targets: Targets::All,
                    principal: "acs:ram::1:user/bench".to_owned(),
                    overwrite: false,
                    token: None,
                    trace: None,
                };
                state.accept(ask).await?;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    stop.cancel();
    tasks.join().await;
    Ok(state.close().await?)
}
