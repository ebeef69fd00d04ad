//! Removing an image and accepting a call for it exclude each other: no replica outlives its image, and an image that
//! is added again under the same id has none.

use std::time::Duration;

use appferry::{
    db::{Db, Error},
    domain::{ImageId, RegionStatus},
};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement, TransactionTrait as _};

use super::{Fixture, add, ask, get, image_id, status};
use crate::harness::{
    database::{self, Kind},
    until,
};

on_every_database! {
    one_of_both_wins
    a_removal_that_is_held_up_sees_what_was_accepted_meanwhile
    a_call_that_is_held_up_is_refused_once_its_image_is_gone
    a_call_that_begins_a_copy_again_is_seen_by_a_removal
}

/// Requests an image in one process while another process removes it. Returns the [`outcome`].
async fn race(one: &Db, other: &Db, image: &ImageId) -> [bool; 2] {
    let (accepted, removed) = tokio::join!(one.accept(ask(image, &["one"])), other.image_remove(image));
    outcome(&accepted, &removed)
}

/// Returns whether the call was accepted and whether the image was removed. Each operation may fail only because of the
/// other one.
fn outcome<T: std::fmt::Debug>(accepted: &Result<T, Error>, removed: &Result<(), Error>) -> [bool; 2] {
    assert!(matches!(accepted, Ok(_) | Err(Error::ImageNotFound(_))), "{accepted:?}");
    assert!(matches!(removed, Ok(()) | Err(Error::ImageInUse { .. })), "{removed:?}");
    [accepted.is_ok(), removed.is_ok()]
}

/// Checks the final state. If the call came first, the image and its replica exist; otherwise both are absent.
async fn check(state: &Db, image: &ImageId, outcome: [bool; 2]) {
    let [accepted, removed] = outcome;
    assert!(accepted != removed, "accepted: {accepted}, removed: {removed}");
    if accepted {
        let (_, replicas) = state.image_get(image).await.expect("it is still there");
        assert_eq!(replicas.iter().map(|(_, replica)| replica.status()).collect::<Vec<_>>(), [RegionStatus::Pending]);
        let page =
            state.synchronization_list(&appferry::db::SynchronizationFilter::default(), None, 1).await.expect("a page");
        state.synchronization_cancel(page.synchronizations[0].request_id).await.expect("it is canceled");
        state.image_remove(image).await.expect("it is removed");
    }
    add(state, image.as_str()).await;
    assert!(state.image_get(image).await.expect("it is there").1.is_empty(), "it has inherited a replica");
}

async fn one_of_both_wins(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (one, other) = (fixture.process().await, fixture.process().await);
    let image = add(&one, "a").await;
    for _ in 0..30 {
        let outcome = race(&one, &other, &image).await;
        check(&one, &image, outcome).await;
    }
    fixture.end().await;
}

/// Waits until at least `count` database sessions wait for locks.
async fn until_waiting(db: &DatabaseConnection, count: i64) {
    let ask = match db.get_database_backend() {
        DbBackend::Postgres => {
            "SELECT COUNT(*) AS waiting FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        }
        _ => {
            "SELECT COUNT(*) AS waiting FROM information_schema.innodb_trx AS t JOIN information_schema.processlist AS p \
             ON p.id = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.db = DATABASE()"
        }
    };
    until("a blocked session", async || {
        // InnoDB caches its transaction statistics until they have not been read for 0.1 s.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), ask)).await.expect("an answer");
        (row?.try_get::<i64>("", "waiting").expect("a number") >= count).then_some(())
    })
    .await;
}

/// Another session locks the image's row, as a backup does. The removal blocks before it deletes the row.
async fn a_removal_that_is_held_up_sees_what_was_accepted_meanwhile(kind: Kind) {
    if kind == Kind::Sqlite {
        return; // SQLite has a single writer: a removal cannot be blocked halfway.
    }
    let mut fixture = Fixture::new(kind).await;
    let (one, other) = (fixture.process().await, fixture.process().await);
    let image = add(&one, "a").await;
    let (holder, looker) = (database::look(&fixture.url).await, database::look(&fixture.url).await);
    let held = holder.begin().await.expect("a transaction");
    let share = if kind == Kind::Postgres { "FOR KEY SHARE" } else { "LOCK IN SHARE MODE" };
    held.execute_unprepared(&format!("SELECT id FROM image WHERE id = 'a' {share}")).await.expect("it is locked");
    let removal = tokio::spawn({
        let image = image.clone();
        async move { other.image_remove(&image).await }
    });
    until_waiting(&looker, 1).await;
    let call = tokio::spawn({
        let (state, call) = (one.clone(), ask(&image, &["one"]));
        async move { state.accept(call).await }
    });
    // The call waits for the removal that has begun.
    until_waiting(&looker, 2).await;
    held.commit().await.expect("it ends");
    let call = call.await.expect("no panic");
    let outcome = outcome(&call, &removal.await.expect("no panic"));
    check(&one, &image, outcome).await;
    fixture.end().await;
}

/// A call has been decided and blocks before its write. Meanwhile its image is removed.
async fn a_call_that_is_held_up_is_refused_once_its_image_is_gone(kind: Kind) {
    if kind != Kind::Postgres {
        return; // SQLite: see `db::accept`. MySQL: a call locks its image before the decision.
    }
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let image = add(&state, "a").await;
    let (holder, looker) = (database::look(&fixture.url).await, database::look(&fixture.url).await);
    let held = holder.begin().await.expect("a transaction");
    held.execute_unprepared("LOCK TABLE synchronization IN SHARE MODE").await.expect("it is locked");
    let call = tokio::spawn({
        let (state, call) = (state.clone(), ask(&image, &["one"]));
        async move { state.accept(call).await }
    });
    until_waiting(&looker, 1).await;
    let removed = state.image_remove(&image).await;
    held.commit().await.expect("it ends");
    let outcome = outcome(&call.await.expect("no panic"), &removed);
    assert_eq!(outcome, [false, true]);
    check(&state, &image, outcome).await;
    fixture.end().await;
}

/// A call restarts a canceled copy, and blocks before its write.
async fn a_call_that_begins_a_copy_again_is_seen_by_a_removal(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let image = add(&state, "a").await;
    let id = state.accept(ask(&image, &["one"])).await.expect("it is accepted");
    state.synchronization_cancel(id).await.expect("it is canceled");
    assert_eq!(status(&get(&state, id).await, "one"), RegionStatus::Canceled);
    if kind != Kind::Postgres {
        let outcome = race(&state, &state, &image).await;
        check(&state, &image, outcome).await;
        return fixture.end().await;
    }
    let (holder, looker) = (database::look(&fixture.url).await, database::look(&fixture.url).await);
    let held = holder.begin().await.expect("a transaction");
    held.execute_unprepared("LOCK TABLE synchronization IN SHARE MODE").await.expect("it is locked");
    let call = tokio::spawn({
        let (state, call) = (state.clone(), ask(&image, &["one"]));
        async move { state.accept(call).await }
    });
    until_waiting(&looker, 1).await;
    let removal = tokio::spawn({
        let (state, image) = (state.clone(), image_id("a"));
        async move { state.image_remove(&image).await }
    });
    until_waiting(&looker, 2).await;
    held.commit().await.expect("it ends");
    let outcome = outcome(&call.await.expect("no panic"), &removal.await.expect("no panic"));
    assert_eq!(outcome, [true, false]);
    check(&state, &image, outcome).await;
    fixture.end().await;
}
