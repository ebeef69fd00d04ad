//! One database per test, on the servers that `scripts/databases` starts.

use std::path::Path;

use appferry::db::{Settings, migrate};
use sea_orm::{ConnectionTrait as _, DatabaseConnection};
use uuid::Uuid;

use super::missing;

/// The supported databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
    MySql,
}

impl Kind {
    /// Returns the name of the environment variable that holds the URL of the server.
    fn variable(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("APPFERRY_TEST_POSTGRES"),
            Self::MySql => Some("APPFERRY_TEST_MYSQL"),
        }
    }

    /// Returns whether a server of this kind runs. A test that needs one returns early otherwise.
    ///
    /// # Panics
    ///
    /// Panics if there is no server and `CI` is set.
    pub fn is_available(self) -> bool {
        self.variable().is_none_or(|variable| std::env::var_os(variable).is_some()) || missing(SERVERS)
    }
}

/// The message that is printed once if no server runs.
const SERVERS: &str = "skipped the tests that need database servers; to run them: source scripts/databases";

/// Creates an empty database, and returns its URL. A SQLite database is a file in `directory`.
pub async fn empty(kind: Kind, directory: &Path) -> String {
    let name = format!("test_{}", Uuid::now_v7().simple());
    let Some(variable) = kind.variable() else {
        let path = directory.join(format!("{name}.db"));
        std::fs::File::create(&path).expect("a file");
        return format!("sqlite://{}", path.display());
    };
    let url = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: source scripts/databases"));
    let maintenance = if kind == Kind::Postgres { format!("{url}/postgres") } else { format!("{url}/mysql") };
    let db = sea_orm::Database::connect(maintenance).await.expect("the server answers");
    db.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("a database is made");
    db.close().await.expect("it is closed");
    format!("{url}/{name}")
}

/// Creates a database with the schema, and returns its URL.
pub async fn fresh(kind: Kind, directory: &Path) -> String {
    let url = empty(kind, directory).await;
    migrate(&Settings::new(url.clone())).await.expect("the schema");
    url
}

/// Opens a connection to a database, bypassing the service.
pub async fn look(url: &str) -> DatabaseConnection {
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    sea_orm::Database::connect(options).await.expect("the database answers")
}
