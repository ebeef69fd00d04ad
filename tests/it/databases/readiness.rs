//! Readiness: a process is ready only while it can write to the database.

use appferry::db::Error;
use sea_orm::{ConnectionTrait as _, SqliteTransactionMode, TransactionOptions, TransactionTrait as _};

use super::{Fixture, add, ask};
use crate::harness::{
    database::{self, Kind},
    until,
};

on_every_database! {
    who_can_not_write_is_not_ready
    who_writes_into_a_file_that_is_gone_is_not_ready
}

/// The file of a SQLite database is deleted or replaced while it is open.
async fn who_writes_into_a_file_that_is_gone_is_not_ready(kind: Kind) {
    if kind != Kind::Sqlite {
        return; // Only SQLite has a file.
    }
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    state.ready().await.expect("it can be written");
    let path = fixture.url.strip_prefix("sqlite://").expect("a file").to_owned();
    let aside = format!("{path}.aside");
    std::fs::rename(&path, &aside).expect("it is moved");
    assert!(state.ready().await.expect_err("it is gone").is_temporary());
    std::fs::copy(&aside, &path).expect("it is copied");
    assert!(state.ready().await.expect_err("it is another one").is_temporary());
    std::fs::rename(&aside, &path).expect("it is moved back");
    state.ready().await.expect("it can be written");
    fixture.end().await;
}

/// Another connection locks the database, or the row that the probe writes.
async fn who_can_not_write_is_not_ready(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let patience = std::time::Duration::from_millis(500);
    let change = |settings| appferry::db::Settings { acquire_timeout: patience, timeout: patience * 2, ..settings };
    let state = fixture.process_with(change).await;
    let a = add(&state, "a").await;
    let db = database::look(&fixture.url).await;
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let held = db.begin_with_options(options).await.expect("a transaction");
    if kind != Kind::Sqlite {
        held.execute_unprepared("INSERT INTO write_probe (name, written_at) VALUES ('readiness', 0)")
            .await
            .expect("a row");
    }
    // Repeats the check, because it reuses the result of a recent write for a while.
    let refused = until("the readiness check to fail", async || state.ready().await.err()).await;
    assert!(refused.is_temporary(), "{refused:?}");
    if kind == Kind::Sqlite {
        let refused = state.accept(ask(&a, &["one"])).await.expect_err("it can't be written");
        assert!(matches!(refused, Error::Unavailable(_) | Error::Slow(_)), "{refused:?}");
    }
    held.rollback().await.expect("it ends");
    until("readiness", async || state.ready().await.ok()).await;
    state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    db.close().await.expect("it is closed");
    fixture.end().await;
}
