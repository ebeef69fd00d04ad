//! PostgreSQL, and MySQL or MariaDB.

use std::time::Duration;

use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr,
    sqlx::{
        self, Connection,
        pool::{PoolConnectionMetadata, PoolOptions},
    },
};
use tokio::time::timeout;

use super::{super::Result, Demoted, Settings, session::Reader};

/// Connections that write: two for groups of calls, on PostgreSQL two more for those of these that need a transaction, the reports of
/// workers, claims, and what is rare.
pub const WRITERS: u32 = 8;

/// Connections are made anew after that time: servers, proxies and names move.
pub const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// What every connection to PostgreSQL is told. Nothing that is asked in the service needs more than a few keys of an index; a
/// plan that was made when a table was empty must not read it whole when it is not.
const POSTGRES: [(&str, &str); 6] = [
    ("application_name", "appferry"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

/// Connections to a server. One that has not been used for a while is asked whether it is good before it is used, and every one when
/// it is given back: a network, or a server that is gone, may have cut it, or swallow what is sent without a word.
pub async fn connect(settings: &Settings, connections: u32, demoted: &Demoted) -> Result<DatabaseConnection> {
    let timeout = settings.timeout;
    let mut options = ConnectOptions::new(&settings.url);
    options
        .max_connections(connections)
        .acquire_timeout(settings.patience)
        .connect_timeout(settings.patience)
        .idle_timeout(None)
        .max_lifetime(LIFETIME)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(move |postgres| {
            let millis = timeout.as_millis().to_string();
            // A transaction of a process that was stopped in the middle of it must not hold its locks for long.
            let times = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
            postgres.options(POSTGRES).options(times.map(|name| (name, millis.clone())))
        })
        .map_sqlx_postgres_pool_opts(released)
        .map_sqlx_mysql_pool_opts(move |pool| {
            released(pool).after_connect(move |connection, _| {
                Box::pin(async move {
                    // Rows are locked by their keys; the gaps between them, which the stricter level locks too, are nobody's.
                    let level = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
                    sqlx::Executor::execute(&mut *connection, level).await?;
                    let wait = format!("SET SESSION innodb_lock_wait_timeout = {}", timeout.as_secs().max(1));
                    sqlx::Executor::execute(connection, sqlx::AssertSqlSafe(wait)).await.map(drop)
                })
            })
        });
    let (demoted, demoted_too) = (demoted.clone(), demoted.clone());
    options
        .map_sqlx_postgres_before_acquire(move |connection, meta| {
            let demoted = demoted.clone();
            Box::pin(async move { Ok(is_good(connection, &meta, &demoted).await) })
        })
        .map_sqlx_mysql_before_acquire(move |connection, meta| {
            let demoted = demoted_too.clone();
            Box::pin(async move { Ok(is_good(connection, &meta, &demoted).await) })
        });
    Ok(Database::connect(options).await?)
}

/// How long a connection may be unused without being asked whether it is good.
pub const IDLE: Duration = Duration::from_secs(1);

/// How long that answer may take.
const ANSWER: Duration = Duration::from_secs(1);

/// Whether a connection answers.
pub async fn answers(connection: &mut impl Connection) -> bool {
    matches!(timeout(ANSWER, connection.ping()).await, Ok(Ok(())))
}

/// Whether a connection may be used. If one that was idle does not answer, nor do, as a rule, those that were made before it was found
/// out: they need not be asked.
async fn is_good(connection: &mut impl Connection, meta: &PoolConnectionMetadata, demoted: &Demoted) -> bool {
    if demoted.is_outlived_by(meta.age) {
        return false;
    }
    let good = meta.idle_for < IDLE || answers(connection).await;
    if !good {
        demoted.note();
    }
    good
}

/// Has connections that are given back, perhaps in the midst of a question that was given up, asked whether they are good; the pool
/// does so too, and would wait for the answer for ever.
fn released<DB: sqlx::Database>(pool: PoolOptions<DB>) -> PoolOptions<DB> {
    pool.after_release(|connection, _| {
        Box::pin(async move {
            let answer = timeout(ANSWER, connection.ping()).await;
            answer.unwrap_or(Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))).map(|()| true)
        })
    })
}

/// Fails unless the server answers and takes writes.
pub async fn takes_writes(db: &Reader) -> Result<()> {
    let ask = match db.get_database_backend() {
        DbBackend::Postgres => "SELECT CAST(current_setting('transaction_read_only') = 'on' AS integer) AS read_only",
        DbBackend::MySql => "SELECT @@global.read_only AS read_only",
        _ => "SELECT 0 AS read_only",
    };
    let statement = sea_orm::Statement::from_string(db.get_database_backend(), ask);
    let row = db.query_one_raw(statement).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("whether the database takes writes".to_owned()))?;
    let read_only = match db.get_database_backend() {
        DbBackend::MySql => row.try_get::<i64>("", "read_only")? != 0,
        _ => row.try_get::<i32>("", "read_only")? != 0,
    };
    if read_only { Err(super::super::Error::ReadOnly) } else { Ok(()) }
}
