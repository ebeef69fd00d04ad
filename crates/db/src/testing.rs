//! Test fixture: a [`Db`] on SQLite in its own directory.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "it is used by tests alone, and panics as they do"
)]

use domain::{Content, Image, ImageKind, ImageName, Regions, Targets};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Db, NewSynchronization, Settings, Tasks, migrate};
use crate::system_clock;

const HOME: &str = "home";

/// A database with its directory and tasks.
pub struct TestDb {
    /// Holds the database's file, and is removed with the fixture.
    pub directory: TempDir,
    /// The database.
    pub db: Db,
    stop: CancellationToken,
    tasks: Tasks,
}

impl TestDb {
    /// Opens a database with these regions in addition to the home region.
    pub async fn open<'a>(
        targets: impl IntoIterator<Item = &'a str>,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = change(Settings::new(format!("sqlite://{}/state.db", directory.path().display())));
        migrate(&settings).await.expect("the schema");
        let targets = targets.into_iter().map(|target| target.parse().expect("an id"));
        let regions = Regions::new(HOME.parse().expect("an id"), targets);
        let stop = CancellationToken::new();
        let (db, tasks) = Db::open(&settings, regions, stop.clone()).await.expect("a database");
        Self { directory, db, stop, tasks }
    }

    /// Registers an image.
    pub async fn add(&self, id: &str) {
        let image = Image {
            id: id.parse().expect("an id"),
            name: "n".into(),
            version: String::new(),
            description: String::new(),
            kind: ImageKind::Vm,
            source: ImageName("n".into()),
            home: HOME.parse().expect("an id"),
            content: Content::Ecs,
            size: 0,
            created_at: system_clock().now(),
            superseded_by: None,
            absent: Vec::new(),
        };
        self.db.image_add(&image).await.expect("a new image");
    }

    /// Stops the tasks.
    pub async fn end(self) {
        self.stop.cancel();
        self.tasks.join().await;
    }
}

/// Returns a synchronization of an image to all regions.
pub fn new_synchronization(image: &str) -> NewSynchronization {
    NewSynchronization {
        request_id: Uuid::now_v7().into(),
        image: image.parse().expect("an id"),
        targets: Targets::All,
        principal: "p".into(),
        overwrite: false,
        token: None,
        trace: None,
    }
}
