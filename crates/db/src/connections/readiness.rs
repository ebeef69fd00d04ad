//! Whether the database accepts writes.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DbErr, EntityTrait as _, Set, Statement, sea_query::OnConflict,
};
use tokio::time::Instant;

use super::{
    super::{Db, Error, Result, entity::write_probe, sql},
    server_pool,
    session::Transaction,
};

/// Time after a successful write for which no test write is needed.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Time of the last successful write; `None` after a failure, so that the next check writes.
#[derive(Debug, Default)]
pub struct WriteHealth(Mutex<Option<Instant>>);

impl WriteHealth {
    /// Records a failure.
    pub fn invalidate(&self) {
        self.set(None);
    }

    /// Records a successful write.
    pub fn confirm(&self) {
        self.set(Some(Instant::now()));
    }

    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn is_recent(&self) -> bool {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < PROBE_INTERVAL)
    }
}

/// The file of an SQLite database at the time it was opened.
#[derive(Debug)]
pub struct DatabaseFile {
    path: PathBuf,
    /// Device and inode numbers.
    id: (u64, u64),
}

impl DatabaseFile {
    /// Returns the file of a database, or `None` for one in memory.
    pub async fn open(connection: &DatabaseConnection) -> Result<Option<Self>> {
        let statement = Statement::from_string(connection.get_database_backend(), "PRAGMA database_list");
        let path = match connection.query_one_raw(statement).await? {
            Some(row) => row.try_get::<Option<String>>("", "file")?.filter(|path| !path.is_empty()),
            None => None,
        };
        let Some(path) = path.map(PathBuf::from) else { return Ok(None) };
        let Some(id) = file_id(&path).await else { return Ok(None) };
        Ok(Some(Self { path, id }))
    }

    /// Returns an error if the path no longer leads to the opened file: writes would be lost when the last connection
    /// closes.
    async fn check(&self) -> Result<()> {
        if file_id(&self.path).await == Some(self.id) {
            return Ok(());
        }
        let message =
            format!("the database's file {} was deleted or replaced; restart the service", self.path.display());
        Err(Error::Unavailable(Arc::new(DbErr::Custom(message))))
    }
}

async fn file_id(path: &Path) -> Option<(u64, u64)> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Db {
    /// Checks whether the database responds and accepts writes. Writes a row unless another write succeeded recently.
    pub async fn ready(&self) -> Result<()> {
        let connections = &self.0.connections;
        connections.read(async |reader| server_pool::check_writable(&reader).await).await?;
        if let Some(file) = &connections.file {
            file.check().await?;
        }
        if connections.write_health.is_recent() {
            return Ok(());
        }
        connections.transaction(async |txn| write_probe(&txn).await).await
    }
}

/// Writes the only row of the table `write_probe`.
async fn write_probe(txn: &Transaction) -> Result<()> {
    use write_probe::{ActiveModel, Column, Entity};
    let row = ActiveModel { name: Set("readiness".to_owned()), written_at: Set(sql::database_time(txn).await?.into()) };
    let conflict = OnConflict::column(Column::Name).update_column(Column::WrittenAt).to_owned();
    Entity::insert(row).on_conflict(conflict).exec_without_returning(txn).await?;
    Ok(())
}
