//! Opening a database, whichever it is.

mod dedicated;
mod ownership;
mod schema;
mod server;
mod sqlite;

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use tokio::time::Instant;

pub use dedicated::Dedicated;
pub use ownership::Ownership;
pub use schema::migrate;

use super::{Error, Result, State};
use crate::metrics;
use dedicated::{Own, Sqlite, Turn, Wanted, Writer};

/// How many groups of calls are underway at the same time. On SQLite, one of them reads and decides while the other is written.
pub const GROUPS: u32 = 2;

/// How the state is kept.
#[derive(Clone)]
pub struct Settings {
    /// The database: `sqlite://PATH`, `postgres://…` or `mysql://…`. It may hold a password.
    pub url: String,
    /// Connections for reading. Those that write are a few more.
    pub readers: u32,
    /// How long to wait for a connection, or for another process to let go of the database.
    pub patience: Duration,
    /// How long one question to the database, or one transaction, may take.
    pub timeout: Duration,
    /// Calls that may wait to be committed; one more is refused.
    pub accept_queue: usize,
    /// Calls that are committed together at most.
    pub accept_batch: usize,
    /// How often watchers are fed when nothing says that something has changed.
    pub poll: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &scheme(&self.url))
            .field("readers", &self.readers)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// The settings for a database, with defaults for the rest.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self {
            url,
            readers: 4,
            patience: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            accept_queue: 4_096,
            accept_batch: 512,
            poll: Duration::from_millis(500),
        }
    }
}

fn scheme(url: &str) -> &str {
    url.split(':').next().unwrap_or_default()
}

/// The connections of a process to its database.
#[derive(Debug)]
pub(super) struct Connections {
    /// Those that write. On SQLite it is one.
    write: DatabaseConnection,
    /// What groups of calls have on SQLite: that one too, and others to read. Nobody waits for these, so metrics don't tell of them.
    sqlite: Option<Arc<Sqlite>>,
    /// Those that read.
    pub read: DatabaseConnection,
    /// How many of those that write are kept by a task which asks nothing at the time.
    unused: Arc<AtomicU32>,
    /// On PostgreSQL, whose turn it is of the tasks that write groups of calls.
    turn: Turn,
    /// When connections that are older may go to a server that does not take writes any more.
    pub demoted: Demoted,
    /// How long one question, or one transaction, may take.
    pub timeout: Duration,
}

/// Notes that a server does not take writes: after a failover, connections that were made before lead to the wrong one.
#[derive(Debug, Clone)]
pub(super) struct Demoted {
    epoch: Instant,
    at: Arc<AtomicU64>,
}

impl Default for Demoted {
    fn default() -> Self {
        Self { epoch: Instant::now(), at: Arc::default() }
    }
}

impl Demoted {
    /// A server has just refused to write.
    pub fn note(&self) {
        self.at.store(self.now(), Ordering::Relaxed);
    }

    /// Whether a connection of that age was made before a server last refused to write.
    pub fn is_outlived_by(&self, age: Duration) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        at > 0 && self.now().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)) <= at
    }

    /// Milliseconds since this process opened the database, from 1.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Opens the connections that write and those that read. The schema must be the current one.
pub(super) async fn open(settings: &Settings) -> Result<Connections> {
    let demoted = Demoted::default();
    let embedded = scheme(&settings.url) == "sqlite";
    let writers = if embedded { 1 } else { server::WRITERS };
    let write = connect(settings, writers, false, &demoted).await?;
    let read = connect(settings, settings.readers, true, &demoted).await?;
    schema::check(&write).await?;
    let unused = Arc::default();
    let sqlite = if embedded {
        let read = sqlite::connect(settings, GROUPS).await?;
        let writer = Writer::of(write.get_sqlite_connection_pool().clone(), Arc::clone(&unused));
        Some(Arc::new(Sqlite { read, writer }))
    } else {
        None
    };
    Ok(Connections { write, sqlite, read, unused, turn: Turn::default(), demoted, timeout: settings.timeout })
}

/// Some connections, whichever database it is; see [`server::connect`].
async fn connect(
    settings: &Settings,
    connections: u32,
    looked_at: bool,
    demoted: &Demoted,
) -> Result<DatabaseConnection> {
    match scheme(&settings.url) {
        "sqlite" => sqlite::connect(settings, connections).await,
        "postgres" | "postgresql" | "mysql" => server::connect(settings, connections, looked_at, demoted).await,
        other => Err(Error::UnknownDatabase(other.to_owned())),
    }
}

/// The connections that write, while somebody wants one of them.
pub(super) struct Writers<'a> {
    connections: &'a DatabaseConnection,
    _wanted: Option<Wanted<'a>>,
}

impl Deref for Writers<'_> {
    type Target = DatabaseConnection;

    fn deref(&self) -> &DatabaseConnection {
        self.connections
    }
}

impl Connections {
    /// Those that write, for anything but groups of calls.
    pub async fn write(&self) -> Writers<'_> {
        let wanted = match &self.sqlite {
            Some(sqlite) => Some(sqlite.writer.want().await),
            None => None,
        };
        Writers { connections: &self.write, _wanted: wanted }
    }

    /// Closes all.
    pub async fn close(&self) -> Result<()> {
        self.read.clone().close().await?;
        if let Some(sqlite) = &self.sqlite {
            sqlite.read.clone().close().await?;
        }
        Ok(self.write().await.clone().close().await?)
    }

    /// Which database it is.
    pub fn backend(&self) -> DbBackend {
        self.write.get_database_backend()
    }

    /// Tells how many connections there are, whenever somebody asks.
    pub fn observe(&self) {
        for (name, pool, unused) in [("write", &self.write, &self.unused), ("read", &self.read, &Arc::default())] {
            let (pool, unused) = (pool.clone(), Arc::clone(unused));
            metrics::pool(name, move || {
                let (all, idle) = match pool.get_database_backend() {
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
                let idle = idle as u64 + u64::from(unused.load(Ordering::Relaxed));
                (u64::from(all).saturating_sub(idle), idle)
            });
        }
    }

    /// What a task asks that commits groups of calls, where it need not share it with everybody.
    pub fn dedicated(&self) -> Option<Dedicated> {
        match (&self.sqlite, self.backend()) {
            (Some(sqlite), _) => Some(Dedicated::Sqlite(Arc::clone(sqlite))),
            (None, DbBackend::Postgres) => {
                let pool = self.write.get_postgres_connection_pool().clone();
                Some(Dedicated::Postgres(Own::of(pool, Arc::clone(&self.unused), Arc::clone(&self.turn))))
            }
            _ => None,
        }
    }
}

impl State {
    /// Begins a transaction that writes. On SQLite it takes the write lock at once: a transaction that began by reading could
    /// be refused it later.
    pub(super) async fn write(&self) -> Result<DatabaseTransaction> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        Ok(self.0.db.write().await.begin_with_options(options).await?)
    }

    /// Carries out what asks the database, in time. A transaction that is given up is rolled back; a statement that is one by itself may
    /// still be carried out.
    pub(super) async fn in_time<T>(&self, ask: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = tokio::time::timeout(self.0.db.timeout, ask).await.unwrap_or(Err(Error::Slow(self.0.db.timeout)));
        if matches!(answer, Err(Error::ReadOnly)) {
            self.0.db.demoted.note();
        }
        answer
    }

    /// The name of the database in traces, as OpenTelemetry's conventions have it.
    pub(super) fn system(&self) -> &'static str {
        match self.0.db.backend() {
            DbBackend::Postgres => "postgresql",
            DbBackend::MySql => "mysql",
            _ => "sqlite",
        }
    }

    /// Asks the database whether it answers, and takes writes.
    pub async fn ready(&self) -> Result<()> {
        self.in_time(server::takes_writes(&self.0.db.read)).await
    }
}
