//! Schema migrations.

use appferry::{
    domain::SynchronizationState,
    state::{Error, Settings, State},
};
use sea_orm::ConnectionTrait as _;
use tokio_util::sync::CancellationToken;

use super::{claim, get, image, region, regions, verify};
use crate::harness::database::{self, Kind};

on_every_database! {
    a_schema_is_brought_up_to_date_once
    the_version_before_works_on_the_schema_after
    what_an_image_left_behind_is_not_inherited
}

/// Two concurrent migrations and a later one: each step is applied once.
async fn a_schema_is_brought_up_to_date_once(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::empty(kind, directory.path()).await;
    let settings = Settings::new(url.clone());
    let refused = State::open(&settings, regions(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(Error::SchemaOld(_))), "{refused:?}");
    let (one, two) = tokio::join!(appferry::state::migrate(&settings), appferry::state::migrate(&settings));
    let steps = one.expect("the schema") + two.expect("the schema");
    assert!(steps > 0);
    assert_eq!(appferry::state::migrate(&settings).await.expect("the schema"), 0);

    let db = database::look(&url).await;
    db.execute_unprepared("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_later', 0)")
        .await
        .expect("a step");
    let refused = State::open(&settings, regions(), CancellationToken::new()).await.expect_err("it is newer");
    assert!(appferry::domain::with_causes(&refused).contains("m29991231_000001_later"), "{refused:?}");
    assert!(matches!(refused, Error::SchemaNewer(_)), "{refused:?}");
    let refused = appferry::state::migrate(&settings).await.expect_err("it is newer");
    assert!(matches!(refused, Error::SchemaNewer(_)), "{refused:?}");
}

/// Writes rows with the statements of the version before the last migration.
async fn written_before(db: &sea_orm::DatabaseConnection, id: &str, request: &str) {
    let uuid = match db.get_database_backend() {
        sea_orm::DbBackend::Postgres => format!("'{request}'::uuid"),
        _ => format!("x'{request}'"),
    };
    for statement in [
        format!(
            "INSERT INTO image (id, name, version, description, kind, source, home_region, root_media_type, root_digest, \
             root_size, size, created_at) \
             VALUES ('{id}', 'n', '1', '', 'VM', 'n', 'home', 'm', 'sha256:{}', 1, 1, 1)",
            "0".repeat(64)
        ),
        format!(
            "INSERT INTO synchronization (request_id, image_id, principal, client_token, asked, targets, open, traceparent, \
             tracestate, state, created_at, finished_at) VALUES ({uuid}, '{id}', 'p', NULL, 'all', 'one,two', 2, NULL, NULL, \
             'RUNNING', 1, NULL)"
        ),
        format!(
            "INSERT INTO replica (image_id, region_id, due_at, fence, state) VALUES ('{id}', 'one', 1, 1, 'PENDING')"
        ),
        format!(
            "INSERT INTO replica (image_id, region_id, due_at, fence, state) VALUES ('{id}', 'two', 1, 1, 'PENDING')"
        ),
        format!(
            "UPDATE replica SET state = 'AVAILABLE', due_at = NULL, attempt = 1, finished_at = 2 \
             WHERE image_id = '{id}' AND region_id = 'one'"
        ),
        format!(
            "INSERT INTO synchronization_target (request_id, region_id, status, attempt, finished_at) \
             VALUES ({uuid}, 'one', 'AVAILABLE', 1, 2)"
        ),
        format!("UPDATE synchronization SET open = 1 WHERE request_id = {uuid}"),
    ] {
        db.execute_unprepared(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

/// The previous version keeps working on the migrated schema, and its rows are understood.
async fn the_version_before_works_on_the_schema_after(kind: Kind) {
    use appferry_migrations::{Migrator, MigratorTrait as _};
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::empty(kind, directory.path()).await;
    let db = database::look(&url).await;
    let steps = u32::try_from(Migrator::migrations().len()).expect("a few");
    Migrator::up(&db, Some(steps - 1)).await.expect("the schema before");
    let [before, after] = ["01a20fb163707000800000000000000a", "01a20fb163707000800000000000000b"];
    written_before(&db, "before", before).await;
    Migrator::up(&db, None).await.expect("the schema after");
    written_before(&db, "after", after).await;
    db.close().await.expect("it is closed");

    let stop = CancellationToken::new();
    let (state, tasks) = State::open(&Settings::new(url), regions(), stop.clone()).await.expect("it opens");
    for claim in claim(&state, "w", 5).await {
        assert_eq!(claim.available, [region("one")]);
        for claimed in claim.regions {
            verify(&state, &claim.id, &claimed.region, claimed.fence).await.expect("it is in time");
        }
    }
    for request in [before, after] {
        let ended = get(&state, request.parse().expect("an id")).await;
        assert_eq!((ended.state, ended.regions.len()), (SynchronizationState::Succeeded, 2));
    }
    stop.cancel();
    tasks.join().await;
}

/// Replicas of an image that an earlier version removed while it accepted a call for it.
async fn what_an_image_left_behind_is_not_inherited(kind: Kind) {
    use appferry_migrations::{Migrator, MigratorTrait as _};
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::empty(kind, directory.path()).await;
    let db = database::look(&url).await;
    let step = "m20261201_000008_replicas_go_with_images";
    let position = Migrator::migrations().iter().position(|one| one.name() == step).expect("the step");
    Migrator::up(&db, Some(u32::try_from(position).expect("a few"))).await.expect("the schema before");
    let request = "01a20fb163707000800000000000000a";
    written_before(&db, "left", request).await;
    db.execute_unprepared("DELETE FROM image WHERE id = 'left'").await.expect("it is removed");
    Migrator::up(&db, None).await.expect("the schema after");

    let stop = CancellationToken::new();
    let (state, tasks) = State::open(&Settings::new(url), regions(), stop.clone()).await.expect("it opens");
    let ended = get(&state, request.parse().expect("an id")).await;
    assert_eq!(
        super::status(&ended, "one"),
        appferry::domain::RegionStatus::Available,
        "the outcome of the call is kept"
    );
    // One replica is still pending: its worker must report first.
    let refused = state.image_add(&image("left")).await;
    assert!(matches!(refused, Err(Error::ImageInUse { .. })), "{refused:?}");
    state.synchronization_cancel(request.parse().expect("an id")).await.expect("it is canceled");
    state.image_add(&image("left")).await.expect("it is added");
    let (_, replicas) = state.image_get(&super::image_id("left")).await.expect("it is there");
    assert!(replicas.is_empty(), "{replicas:?}");
    stop.cancel();
    tasks.join().await;
    db.close().await.expect("it is closed");
}
