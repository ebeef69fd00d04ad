//! Interrupted migrations: the next run completes a migration, whichever writing statement was its last.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use appferry::db::{Settings, migrate};
use appferry_migrations::{Migrator, MigratorTrait as _};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

use crate::harness::database::{self, Kind};

on_every_database! {
    a_first_start_that_was_interrupted_is_completed
    migrations_at_the_same_time_wait_for_each_other
}

/// How long a migration may wait until the server notices that the interrupted migration's connection is closed.
const WAIT: Duration = Duration::from_secs(60);

/// For each writing statement, runs a migration that is interrupted after this statement, then completes the migration.
async fn a_first_start_that_was_interrupted_is_completed(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::empty(kind, directory.path()).await;
    migrate(&Settings::new(url.clone())).await.expect("the schema");
    let whole = contents(&url).await;

    let mut statement = 1;
    loop {
        let url = database::empty(kind, directory.path()).await;
        if !cut_after(&url, statement).await {
            break;
        }
        migrate(&Settings::new(url.clone()))
            .await
            .unwrap_or_else(|error| panic!("cut after statement {statement}: {error:?}"));
        assert_eq!(contents(&url).await, whole, "cut after statement {statement}");
        statement += 1;
    }
    assert!(statement > 10, "only {statement} statements were seen");
}

/// Runs the migration and aborts it after its `statement`-th writing statement, counted from one. Returns whether the
/// migration has so many.
async fn cut_after(url: &str, statement: usize) -> bool {
    let mut db = database::look(url).await;
    let seen = Arc::new(AtomicUsize::new(0));
    db.set_metric_callback(move |executed| {
        // Skips read-only statements, because they change nothing.
        if !executed.statement.sql.starts_with("SELECT") && seen.fetch_add(1, Ordering::SeqCst) + 1 == statement {
            // Ends the task and drops its connection like a panic, but without a message.
            std::panic::resume_unwind(Box::new("cut"));
        }
    });
    let migration = tokio::spawn(async move { appferry_migrations::migrate(&db, WAIT).await });
    match migration.await {
        Ok(migrated) => {
            migrated.expect("the schema");
            false
        }
        Err(error) => {
            assert!(error.is_panic());
            true
        }
    }
}

/// Returns the definition of the schema and the rows that record the applied migrations.
async fn contents(url: &str) -> Vec<String> {
    let db = database::look(url).await;
    let backend = db.get_database_backend();
    let schema = match backend {
        DbBackend::Sqlite => vec!["SELECT type || ' ' || name || ' ' || coalesce(sql, '') AS line FROM sqlite_master"],
        DbBackend::Postgres => vec![
            "SELECT concat_ws(' ', table_name, column_name, data_type, character_maximum_length, collation_name, is_nullable, \
             column_default) AS line FROM information_schema.columns WHERE table_schema = 'public'",
            "SELECT indexdef AS line FROM pg_indexes WHERE schemaname = 'public'",
            "SELECT concat_ws(' ', relname, array_to_string(reloptions, ' ')) AS line FROM pg_class \
             WHERE relnamespace = 'public'::regnamespace",
        ],
        _ => vec![
            "SELECT concat_ws(' ', table_name, column_name, ordinal_position, column_type, collation_name, is_nullable, \
             column_default) AS line FROM information_schema.columns WHERE table_schema = DATABASE()",
            "SELECT concat_ws(' ', table_name, index_name, seq_in_index, column_name, sub_part, non_unique) AS line \
             FROM information_schema.statistics WHERE table_schema = DATABASE()",
        ],
    };
    let steps = "SELECT version AS line FROM seaql_migrations";
    let mut lines = Vec::new();
    for sql in schema.into_iter().chain([steps]) {
        let read = db.query_all_raw(Statement::from_string(backend, sql)).await.expect("it can be read");
        let mut read: Vec<String> = read.iter().map(|row| row.try_get::<String>("", "line").expect("a line")).collect();
        read.sort();
        lines.append(&mut read);
    }
    db.close().await.expect("it is closed");
    lines
}

/// Three migrations of an empty database run concurrently. All succeed, and each step is applied once.
async fn migrations_at_the_same_time_wait_for_each_other(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = empty(kind, directory.path()).await;
    let settings = Settings::new(url);
    let three = tokio::join!(migrate(&settings), migrate(&settings), migrate(&settings));
    let steps = [three.0, three.1, three.2].map(|steps| steps.expect("the schema"));
    assert_eq!(steps.iter().sum::<usize>(), Migrator::migrations().len(), "{steps:?}");
}

/// Returns the URL of an empty database. The file of a SQLite database does not exist yet.
async fn empty(kind: Kind, directory: &Path) -> String {
    match kind {
        Kind::Sqlite => format!("sqlite://{}/state.db", directory.display()),
        _ => database::empty(kind, directory).await,
    }
}
