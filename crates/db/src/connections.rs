//! The connections of a process to its database, for every kind of database.

mod access;
mod failover;
mod ownership;
mod pinned;
mod process_time;
mod readiness;
mod schema;
mod server_pool;
mod session;
mod settings;
mod sqlite_pool;

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use failover::FailoverMarker;
use instrumentation::metrics;
use pinned::{PinnedPgConnection, PinnedSqlite, PinnedSqliteWriter, WriteTurn, WriterRequest};
use process_time::ProcessTime;
use readiness::{DatabaseFile, WriteHealth};
use sea_orm::{DatabaseConnection, DbBackend};
use tokio::time::timeout;

pub use ownership::{Ownership, file};
pub use pinned::PinnedConnection;
pub use process_time::elapsed_since_boot;
pub use schema::migrate;
pub use session::{Reader, Session, Transaction};
pub use settings::Settings;
pub use sqlite_pool::{PAGE_BYTES, WAL_LIMIT_BYTES};

use super::{Db, Error, Result};

/// Number of tasks that commit batches of calls. On SQLite, one of them reads and decides while the other one writes.
pub const COMMIT_TASKS: u32 = 2;

/// The connections of a process to its database. Every query goes through [`access`], which applies the deadline.
#[derive(Debug)]
pub(super) struct Connections {
    /// The write pool; a single connection on SQLite.
    write: DatabaseConnection,
    /// The connections of the tasks that commit batches on SQLite. Metrics do not count the readers among them, because
    /// no other query waits for these readers.
    sqlite: Option<Arc<PinnedSqlite>>,
    /// The read pool.
    reader: Reader,
    /// The clock of a database that this process owns.
    time: Option<Arc<ProcessTime>>,
    /// Number of pinned connections of the write pool that run no query.
    idle: Arc<AtomicU32>,
    /// Lets one task at a time write a batch on PostgreSQL.
    write_turn: WriteTurn,
    /// Time of the last failover.
    failover: FailoverMarker,
    /// Result of the last write.
    write_health: WriteHealth,
    /// The database's file on SQLite.
    file: Option<DatabaseFile>,
    /// Maximum duration of a query.
    timeout: Duration,
    /// Maximum duration of a transaction, including the wait for other transactions.
    write_timeout: Duration,
}

/// Opens the pools. Returns an error unless the schema is the current one.
pub(super) async fn open(settings: &Settings) -> Result<Connections> {
    let failover = FailoverMarker::default();
    let is_sqlite = settings.is_sqlite();
    let writers = if is_sqlite { 1 } else { server_pool::WRITERS };
    let write = connect(settings, writers, &failover).await?;
    let read = connect(settings, settings.readers, &failover).await?;
    timeout(settings.timeout, schema::check(&write)).await.unwrap_or(Err(Error::Slow(settings.timeout)))?;
    let idle = Arc::default();
    let sqlite = if is_sqlite {
        let read = sqlite_pool::connect(settings, COMMIT_TASKS).await?;
        let writer = PinnedSqliteWriter::new(write.get_sqlite_connection_pool().clone(), Arc::clone(&idle));
        Some(Arc::new(PinnedSqlite { read, writer }))
    } else {
        None
    };
    let file = if is_sqlite { DatabaseFile::open(&write).await? } else { None };
    let time = is_sqlite.then(|| Arc::new(ProcessTime::start(settings.clock.clone())));
    let reader = Session::new(read, time.clone());
    Ok(Connections {
        write,
        sqlite,
        reader,
        time,
        idle,
        write_turn: WriteTurn::default(),
        failover,
        write_health: WriteHealth::default(),
        file,
        timeout: settings.timeout,
        write_timeout: settings.timeout * if is_sqlite { sqlite_pool::SLOW_DISK_FACTOR } else { 1 },
    })
}

/// Opens a pool of up to `connections` connections.
async fn connect(settings: &Settings, connections: u32, failover: &FailoverMarker) -> Result<DatabaseConnection> {
    match settings.scheme() {
        "sqlite" => sqlite_pool::connect(settings, connections).await,
        "postgres" | "postgresql" | "mysql" => server_pool::connect(settings, connections, failover).await,
        other => Err(Error::UnknownDatabase(other.to_owned())),
    }
}

/// Access to the write pool. On SQLite, the tasks that commit batches return the writer to the pool while this value
/// lives.
pub(super) struct WritePool<'a> {
    pool: &'a DatabaseConnection,
    _request: Option<WriterRequest<'a>>,
}

impl Deref for WritePool<'_> {
    type Target = DatabaseConnection;

    fn deref(&self) -> &DatabaseConnection {
        self.pool
    }
}

impl Connections {
    /// Returns the pool for writes outside the batches.
    async fn write_pool(&self) -> WritePool<'_> {
        let request = match &self.sqlite {
            Some(sqlite) => Some(sqlite.writer.request().await),
            None => None,
        };
        WritePool { pool: &self.write, _request: request }
    }

    /// Closes every connection. Connections that take longer than the timeout are left to the operating system.
    pub async fn close(&self) -> Result<()> {
        let close = async {
            self.reader.inner().clone().close().await?;
            if let Some(sqlite) = &self.sqlite {
                sqlite.read.clone().close().await?;
            }
            Ok(self.write_pool().await.clone().close().await?)
        };
        timeout(self.timeout, close).await.unwrap_or(Err(Error::Slow(self.timeout)))
    }

    /// Returns the kind of database.
    pub fn backend(&self) -> DbBackend {
        self.write.get_database_backend()
    }

    /// Registers the metrics of both pools.
    pub fn observe(&self) {
        for (name, pool, pinned) in [("write", &self.write, &self.idle), ("read", self.reader.inner(), &Arc::default())]
        {
            let (pool, pinned) = (pool.clone(), Arc::clone(pinned));
            metrics::observe_pool(name, move || {
                let (size, idle) = match pool.get_database_backend() {
                    DbBackend::Sqlite => {
                        let pool = pool.get_sqlite_connection_pool();
                        (pool.size(), pool.num_idle())
                    }
                    DbBackend::Postgres => {
                        let pool = pool.get_postgres_connection_pool();
                        (pool.size(), pool.num_idle())
                    }
                    _ => {
                        let pool = pool.get_mysql_connection_pool();
                        (pool.size(), pool.num_idle())
                    }
                };
                let idle = idle as u64 + u64::from(pinned.load(Ordering::Relaxed));
                (u64::from(size).saturating_sub(idle), idle)
            });
        }
    }

    /// Returns the connection of a task that commits batches; `None` on MySQL and MariaDB, where batches use the pool.
    pub fn pinned(&self) -> Option<Session<PinnedConnection>> {
        let pinned = match (&self.sqlite, self.backend()) {
            (Some(sqlite), _) => PinnedConnection::Sqlite(Arc::clone(sqlite)),
            (None, DbBackend::Postgres) => {
                let pool = self.write.get_postgres_connection_pool().clone();
                let (idle, write_turn) = (Arc::clone(&self.idle), Arc::clone(&self.write_turn));
                PinnedConnection::Postgres(PinnedPgConnection::new(pool, idle, write_turn, self.failover.clone()))
            }
            _ => return None,
        };
        Some(Session::new(pinned, self.time.clone()))
    }

    /// Returns the read pool, for tests that occupy its connections.
    #[cfg(test)]
    pub fn read_pool(&self) -> &DatabaseConnection {
        self.reader.inner()
    }
}

impl Db {
    /// Returns the database's name in traces (OpenTelemetry semantic conventions, `db.system.name`).
    pub(super) fn system(&self) -> &'static str {
        match self.0.connections.backend() {
            DbBackend::Postgres => "postgresql",
            DbBackend::MySql => "mysql",
            _ => "sqlite",
        }
    }
}
