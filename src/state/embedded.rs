//! For tests: a state on SQLite, in a directory of its own.

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{Ask, Settings, State, Tasks, migrate};
use crate::domain::{Clock, Content, Image, ImageKind, ImageName, Regions, RequestId, Targets};

const HOME: &str = "home";

/// See the module.
pub struct Embedded {
    pub directory: TempDir,
    pub state: State,
    stop: CancellationToken,
    tasks: Tasks,
}

impl Embedded {
    /// Opens one that has these regions beside the home region.
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
        let (state, tasks) = State::open(&settings, regions, stop.clone()).await.expect("it opens");
        Self { directory, state, stop, tasks }
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
            created_at: Clock::system().now(),
            superseded_by: None,
            absent: Vec::new(),
        };
        self.state.image_add(&image).await.expect("it is added");
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.tasks.join().await;
    }
}

/// A call that asks for an image in all regions.
pub fn ask(image: &str) -> Ask {
    Ask {
        request_id: RequestId::generate(),
        image: image.parse().expect("an id"),
        targets: Targets::All,
        principal: "p".into(),
        overwrite: false,
        token: None,
        trace: None,
    }
}
