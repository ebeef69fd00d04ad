//! Connection pools of PostgreSQL, MySQL and MariaDB.

use std::time::Duration;

use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr,
    sqlx::{
        self, Connection,
        pool::{PoolConnectionMetadata, PoolOptions},
    },
};
use tokio::time::timeout;

use super::{
    super::{Error, Result},
    Settings,
    failover::FailoverMarker,
    session::Reader,
};

/// Size of the write pool. Two connections serve batches of calls and, on PostgreSQL, two more serve batches that need
/// a transaction. The others serve the workers' reports, claims, and rare writes.
pub const WRITERS: u32 = 8;

/// Maximum age of a connection. New connections follow servers, proxies and DNS records that have moved.
pub const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Session settings on PostgreSQL. Every query looks up a few keys in an index. A plan that was cached for an empty
/// table must not scan the table after it has grown.
const POSTGRES_OPTIONS: [(&str, &str); 6] = [
    ("application_name", "appferry"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

/// Opens a pool. A connection is checked before use if it was idle for a while, and whenever it is returned: a network
/// or a crashed server may have dropped it, or may drop its packets silently.
pub async fn connect(settings: &Settings, connections: u32, failover: &FailoverMarker) -> Result<DatabaseConnection> {
    let timeout = settings.timeout;
    let mut options = ConnectOptions::new(&settings.url);
    options
        .max_connections(connections)
        .acquire_timeout(settings.acquire_timeout)
        .connect_timeout(settings.acquire_timeout)
        .idle_timeout(None)
        .max_lifetime(MAX_LIFETIME)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(move |postgres| {
            let millis = timeout.as_millis().to_string();
            // A process that was suspended within a transaction must not hold its locks for long.
            let timeouts = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
            postgres.options(POSTGRES_OPTIONS).options(timeouts.map(|name| (name, millis.clone())))
        })
        .map_sqlx_postgres_pool_opts(check_on_release)
        .map_sqlx_mysql_pool_opts(move |pool| {
            check_on_release(pool).after_connect(move |connection, _| {
                Box::pin(async move {
                    // Rows are locked by their keys. The default level would also lock the gaps between them.
                    let level = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
                    sqlx::Executor::execute(&mut *connection, level).await?;
                    let wait = format!("SET SESSION innodb_lock_wait_timeout = {}", timeout.as_secs().max(1));
                    sqlx::Executor::execute(connection, sqlx::AssertSqlSafe(wait)).await.map(drop)
                })
            })
        });
    let (postgres_failover, mysql_failover) = (failover.clone(), failover.clone());
    options
        .map_sqlx_postgres_before_acquire(move |connection, meta| {
            let failover = postgres_failover.clone();
            Box::pin(async move { Ok(is_usable(connection, &meta, &failover).await) })
        })
        .map_sqlx_mysql_before_acquire(move |connection, meta| {
            let failover = mysql_failover.clone();
            Box::pin(async move { Ok(is_usable(connection, &meta, &failover).await) })
        });
    Ok(Database::connect(options).await?)
}

/// Idle time after which a connection is checked before it is used.
pub const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// Maximum duration of that check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether the server responds on a connection.
pub async fn responds(connection: &mut impl Connection) -> bool {
    matches!(timeout(CHECK_TIMEOUT, connection.ping()).await, Ok(Ok(())))
}

/// Whether a connection may be used. Once an idle connection has failed its check, older ones have usually failed too
/// and are replaced without a check.
async fn is_usable(connection: &mut impl Connection, meta: &PoolConnectionMetadata, failover: &FailoverMarker) -> bool {
    if failover.is_after_opening(meta.age) {
        return false;
    }
    let usable = meta.idle_for < CHECK_AFTER_IDLE || responds(connection).await;
    if !usable {
        failover.mark();
    }
    usable
}

/// Checks connections that are returned to the pool, possibly after a canceled query. The pool's own check has no
/// deadline.
fn check_on_release<DB: sqlx::Database>(pool: PoolOptions<DB>) -> PoolOptions<DB> {
    pool.after_release(|connection, _| {
        Box::pin(async move {
            let result = timeout(CHECK_TIMEOUT, connection.ping()).await;
            result.unwrap_or(Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))).map(|()| true)
        })
    })
}

/// Returns an error unless the server responds and accepts writes.
pub async fn check_writable(reader: &Reader) -> Result<()> {
    let query = match reader.get_database_backend() {
        DbBackend::Postgres => "SELECT CAST(current_setting('transaction_read_only') = 'on' AS integer) AS read_only",
        DbBackend::MySql => "SELECT @@global.read_only AS read_only",
        _ => "SELECT 0 AS read_only",
    };
    let statement = sea_orm::Statement::from_string(reader.get_database_backend(), query);
    let row = reader.query_one_raw(statement).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("whether the database takes writes".to_owned()))?;
    let read_only = match reader.get_database_backend() {
        DbBackend::MySql => row.try_get::<i64>("", "read_only")? != 0,
        _ => row.try_get::<i32>("", "read_only")? != 0,
    };
    if read_only { Err(Error::ReadOnly) } else { Ok(()) }
}
