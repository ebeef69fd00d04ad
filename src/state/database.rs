//! Opening a database, whichever it is.

mod dedicated;
mod door;
mod ownership;
mod readiness;
mod schema;
mod server;
mod session;
mod sqlite;
mod time;

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{DatabaseConnection, DbBackend};
use tokio::time::{Instant, timeout};

pub use dedicated::Dedicated;
pub use ownership::{Ownership, file};
pub use schema::migrate;
pub use session::{Reader, Session, Transaction};
pub use sqlite::{LOG_LIMIT, PAGE};
pub use time::passed;

use super::{Error, Result, State};
use crate::{domain::Clock, metrics};
use dedicated::{Own, Sqlite, Turn, Wanted, Writer};
use readiness::{DatabaseFile, Writable};
use time::ProcessTime;

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
    /// Tells the time where the process alone has the database.
    pub clock: Clock,
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
            clock: Clock::system(),
        }
    }
}

fn scheme(url: &str) -> &str {
    url.split(':').next().unwrap_or_default()
}

/// The connections of a process to its database. What asks it goes through [`door`], where everything has a deadline.
#[derive(Debug)]
pub(super) struct Connections {
    /// Those that write. On SQLite it is one.
    write: DatabaseConnection,
    /// What groups of calls have on SQLite: that one too, and others to read. Nobody waits for these, so metrics don't tell of them.
    sqlite: Option<Arc<Sqlite>>,
    /// Those that read.
    reader: Reader,
    /// The time, where this process alone has the database.
    time: Option<Arc<ProcessTime>>,
    /// How many of those that write are kept by a task which asks nothing at the time.
    unused: Arc<AtomicU32>,
    /// On PostgreSQL, whose turn it is of the tasks that write groups of calls.
    turn: Turn,
    /// When connections that are older may go to a server that does not take writes any more.
    demoted: Demoted,
    /// Whether something can be written, as far as is known.
    writable: Writable,
    /// The file of SQLite.
    file: Option<DatabaseFile>,
    /// How long one question may take.
    timeout: Duration,
    /// How long one transaction may take, with all that waits for it.
    write_timeout: Duration,
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
    let write = connect(settings, writers, &demoted).await?;
    let read = connect(settings, settings.readers, &demoted).await?;
    timeout(settings.timeout, schema::check(&write)).await.unwrap_or(Err(Error::Slow(settings.timeout)))?;
    let unused = Arc::default();
    let sqlite = if embedded {
        let read = sqlite::connect(settings, GROUPS).await?;
        let writer = Writer::of(write.get_sqlite_connection_pool().clone(), Arc::clone(&unused));
        Some(Arc::new(Sqlite { read, writer }))
    } else {
        None
    };
    let file = if embedded { DatabaseFile::of(&write).await? } else { None };
    let time = embedded.then(|| Arc::new(ProcessTime::start(settings.clock.clone())));
    let reader = Session::new(read, time.clone());
    Ok(Connections {
        write,
        sqlite,
        reader,
        time,
        unused,
        turn: Turn::default(),
        demoted,
        writable: Writable::default(),
        file,
        timeout: settings.timeout,
        write_timeout: settings.timeout * if embedded { sqlite::SLOW_DISK } else { 1 },
    })
}

/// Some connections, whichever database it is; see [`server::connect`].
async fn connect(settings: &Settings, connections: u32, demoted: &Demoted) -> Result<DatabaseConnection> {
    match scheme(&settings.url) {
        "sqlite" => sqlite::connect(settings, connections).await,
        "postgres" | "postgresql" | "mysql" => server::connect(settings, connections, demoted).await,
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
    async fn writers(&self) -> Writers<'_> {
        let wanted = match &self.sqlite {
            Some(sqlite) => Some(sqlite.writer.want().await),
            None => None,
        };
        Writers { connections: &self.write, _wanted: wanted }
    }

    /// Closes all, or leaves them to the system where that takes too long.
    pub async fn close(&self) -> Result<()> {
        let close = async {
            self.reader.inner().clone().close().await?;
            if let Some(sqlite) = &self.sqlite {
                sqlite.read.clone().close().await?;
            }
            Ok(self.writers().await.clone().close().await?)
        };
        timeout(self.timeout, close).await.unwrap_or(Err(Error::Slow(self.timeout)))
    }

    /// Which database it is.
    pub fn backend(&self) -> DbBackend {
        self.write.get_database_backend()
    }

    /// Tells how many connections there are, whenever somebody asks.
    pub fn observe(&self) {
        for (name, pool, unused) in
            [("write", &self.write, &self.unused), ("read", self.reader.inner(), &Arc::default())]
        {
            let (pool, unused) = (pool.clone(), Arc::clone(unused));
            metrics::observe_pool(name, move || {
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
    pub fn dedicated(&self) -> Option<Session<Dedicated>> {
        let dedicated = match (&self.sqlite, self.backend()) {
            (Some(sqlite), _) => Dedicated::Sqlite(Arc::clone(sqlite)),
            (None, DbBackend::Postgres) => {
                let pool = self.write.get_postgres_connection_pool().clone();
                let (unused, turn) = (Arc::clone(&self.unused), Arc::clone(&self.turn));
                Dedicated::Postgres(Own::of(pool, unused, turn, self.demoted.clone()))
            }
            _ => return None,
        };
        Some(Session::new(dedicated, self.time.clone()))
    }

    /// The connections that read, for a test that keeps them.
    #[cfg(test)]
    pub fn readers(&self) -> &DatabaseConnection {
        self.reader.inner()
    }
}

impl State {
    /// The name of the database in traces, as OpenTelemetry's conventions have it.
    pub(super) fn system(&self) -> &'static str {
        match self.0.db.backend() {
            DbBackend::Postgres => "postgresql",
            DbBackend::MySql => "mysql",
            _ => "sqlite",
        }
    }
}
