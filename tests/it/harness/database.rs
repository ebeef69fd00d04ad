//! One database per test, on the servers that `scripts/databases` starts.

use std::path::Path;

use appferry::state::{Settings, migrate};
use sea_orm::{ConnectionTrait as _, DatabaseConnection};
use uuid::Uuid;

/// The supported databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
    MySql,
}

impl Kind {}

/// Returns the server URL in an environment variable.
fn server(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run scripts/test, or source scripts/databases"))
}

/// Creates an empty database, and returns its URL. SQLite's file is in `directory`.
pub async fn empty(kind: Kind, directory: &Path) -> String {
    let name = format!("test_{}", Uuid::now_v7().simple());
    let (url, create) = match kind {
        Kind::Sqlite => {
            let path = directory.join(format!("{name}.db"));
            std::fs::File::create(&path).expect("a file");
            return format!("sqlite://{}", path.display());
        }
        Kind::Postgres => (server("APPFERRY_TEST_POSTGRES"), format!("CREATE DATABASE {name}")),
        Kind::MySql => (server("APPFERRY_TEST_MYSQL"), format!("CREATE DATABASE {name}")),
    };
    let maintenance = if kind == Kind::Postgres { format!("{url}/postgres") } else { format!("{url}/mysql") };
    let db = sea_orm::Database::connect(maintenance).await.expect("the server answers");
    db.execute_unprepared(&create).await.expect("a database is made");
    db.close().await.expect("it is closed");
    format!("{url}/{name}")
}

/// Creates a database with the schema, and returns its URL.
pub async fn fresh(kind: Kind, directory: &Path) -> String {
    let url = empty(kind, directory).await;
    migrate(&Settings::new(url.clone())).await.expect("the schema");
    url
}

/// Opens an independent connection to a database.
pub async fn look(url: &str) -> DatabaseConnection {
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    sea_orm::Database::connect(options).await.expect("the database answers")
}
