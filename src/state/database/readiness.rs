//! Whether the database can be written.

use std::{
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbErr, Statement};
use tokio::time::Instant;

use super::{
    super::{
        Error, Result, State,
        sql::{Kind, Rows, Sql},
    },
    server,
    session::Transaction,
};

/// How often something is written to find out whether it can be, while nothing else is written and nothing speaks against it.
const EVERY: Duration = Duration::from_secs(5);

/// When something was last written; nothing if there is reason to doubt that it can be.
#[derive(Debug, Default)]
pub struct Writable(Mutex<Option<Instant>>);

impl Writable {
    /// Something has just failed: the next readiness check has to write.
    pub fn doubt(&self) {
        self.set(None);
    }

    /// Something has just been written.
    pub fn believe(&self) {
        self.set(Some(Instant::now()));
    }

    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn is_known(&self) -> bool {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < EVERY)
    }
}

/// The file of SQLite, as it was when it was opened.
#[derive(Debug)]
pub struct DatabaseFile {
    path: PathBuf,
    /// Its device and its number there.
    id: (u64, u64),
}

impl DatabaseFile {
    /// The file of a database; nothing if it has none.
    pub async fn of(db: &DatabaseConnection) -> Result<Option<Self>> {
        let statement = Statement::from_string(db.get_database_backend(), "PRAGMA database_list");
        let path = match db.query_one_raw(statement).await? {
            Some(row) => row.try_get::<Option<String>>("", "file")?.filter(|path| !path.is_empty()),
            None => None,
        };
        let Some(path) = path.map(PathBuf::from) else { return Ok(None) };
        let Some(id) = id(&path).await else { return Ok(None) };
        Ok(Some(Self { path, id }))
    }

    /// Fails if another file, or none, is in its place: what is written then is lost with the last connection.
    async fn check(&self) -> Result<()> {
        if id(&self.path).await == Some(self.id) {
            return Ok(());
        }
        let gone = format!("the database's file {} was deleted or replaced; restart the service", self.path.display());
        Err(Error::Unavailable(Arc::new(DbErr::Custom(gone))))
    }
}

async fn id(path: &PathBuf) -> Option<(u64, u64)> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl State {
    /// Asks the database whether it answers, and takes writes: now and then something is written.
    pub async fn ready(&self) -> Result<()> {
        let connections = &self.0.db;
        connections.read(async |db| server::takes_writes(&db).await).await?;
        if let Some(file) = &connections.file {
            file.check().await?;
        }
        if connections.writable.is_known() {
            return Ok(());
        }
        connections.transaction(async |txn| probe(&txn).await).await
    }
}

/// Writes the only row of a table that is there for that.
async fn probe(txn: &Transaction) -> Result<()> {
    const NAME: &str = "readiness";
    let written = Sql::on(txn)
        .text("UPDATE write_probe SET written_at = ")
        .now()
        .text(" WHERE name = ")
        .value(NAME)
        .execute(txn)
        .await?;
    if written == 0 {
        Sql::on(txn)
            .text("INSERT INTO write_probe (name, written_at) SELECT w.name, ")
            .now()
            .text(" FROM ")
            .rows(Rows::new([("name", Kind::Name)], [[NAME.into()]]))
            .execute(txn)
            .await?;
    }
    Ok(())
}
