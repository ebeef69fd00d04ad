//! Schema migrations.

use appferry::db::{Db, Error, Settings};
use sea_orm::ConnectionTrait as _;
use tokio_util::sync::CancellationToken;

use super::regions;
use crate::harness::database::{self, Kind};

on_every_database! {
    a_schema_is_brought_up_to_date_once
    digests_by_sha512_fit
}

/// Two concurrent migrations and a later one apply each step once.
async fn a_schema_is_brought_up_to_date_once(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::empty(kind, directory.path()).await;
    let settings = Settings::new(url.clone());
    let refused = Db::open(&settings, regions(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(Error::SchemaOld(_))), "{refused:?}");
    let (one, two) = tokio::join!(appferry::db::migrate(&settings), appferry::db::migrate(&settings));
    let steps = one.expect("the schema") + two.expect("the schema");
    assert!(steps > 0);
    assert_eq!(appferry::db::migrate(&settings).await.expect("the schema"), 0);

    let db = database::look(&url).await;
    db.execute_unprepared("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_later', 0)")
        .await
        .expect("a step");
    let refused = Db::open(&settings, regions(), CancellationToken::new()).await.expect_err("it is newer");
    assert!(appferry::domain::with_causes(&refused).contains("m29991231_000001_later"), "{refused:?}");
    assert!(matches!(refused, Error::SchemaNewer(_)), "{refused:?}");
    let refused = appferry::db::migrate(&settings).await.expect_err("it is newer");
    assert!(matches!(refused, Error::SchemaNewer(_)), "{refused:?}");
}

/// Every column for digests is wide enough for the longest digest that OCI registers.
async fn digests_by_sha512_fit(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::fresh(kind, directory.path()).await;
    let db = database::look(&url).await;
    let digest = format!("sha512:{}", "0".repeat(128));
    for (table, columns, values) in [
        (
            "image",
            "id, name, version, description, kind, source, home_region, root_media_type, root_digest",
            format!("'a', '', '', '', 'VM', '', 'home', '', '{digest}'"),
        ),
        ("image_reference", "name, root_digest, image_id", format!("'n', '{digest}', 'a'")),
        (
            "published",
            "region_id, name, root_digest, pending_digest, image_id",
            format!("'one', 'n', '{digest}', '{digest}', 'a'"),
        ),
        ("written_blob", "image_id, region_id, blob", format!("'a', 'one', '{digest}'")),
        ("read_blob", "region_id, location, blob", format!("'one', 'images', '{digest}'")),
        ("upload", "image_id, region_id, blob, session", format!("'a', 'one', '{digest}', ''")),
    ] {
        // `blob` must be quoted in MySQL, where it is the name of a type.
        let columns = if kind == Kind::MySql { columns.replace("blob", "`blob`") } else { columns.to_owned() };
        let insert = format!("INSERT INTO {table} ({columns}) VALUES ({values})");
        db.execute_unprepared(&insert).await.unwrap_or_else(|error| panic!("{insert}: {error}"));
    }
    db.close().await.expect("it is closed");
}
