//! PostgreSQL, and MySQL or MariaDB.

use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr, sqlx};

use super::{super::Result, Demoted, Settings};

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

/// `looked_at` says whether a connection is looked at before it is used: it costs a way to the server and back, and spares readers the
/// connections that broke while nobody used them. A group of calls does without.
pub async fn connect(
    settings: &Settings,
    connections: u32,
    looked_at: bool,
    demoted: &Demoted,
) -> Result<DatabaseConnection> {
    let timeout = settings.timeout;
    let mut options = ConnectOptions::new(&settings.url);
    options
        .max_connections(connections)
        .acquire_timeout(settings.patience)
        .connect_timeout(settings.patience)
        .idle_timeout(None)
        .max_lifetime(LIFETIME)
        .test_before_acquire(looked_at)
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(move |postgres| {
            let millis = timeout.as_millis().to_string();
            // A transaction of a process that was stopped in the middle of it must not hold its locks for long.
            let times = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
            postgres.options(POSTGRES).options(times.map(|name| (name, millis.clone())))
        })
        .map_sqlx_mysql_pool_opts(move |pool| {
            pool.after_connect(move |connection, _| {
                Box::pin(async move {
                    // Rows are locked by their keys; the gaps between them, which the stricter level locks too, are nobody's.
                    let level = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
                    sqlx::Executor::execute(&mut *connection, level).await?;
                    let wait = format!("SET SESSION innodb_lock_wait_timeout = {}", timeout.as_secs().max(1));
                    sqlx::Executor::execute(connection, sqlx::AssertSqlSafe(wait)).await.map(drop)
                })
            })
        });
    let outlived = {
        let demoted = demoted.clone();
        move |age: Duration| demoted.is_outlived_by(age)
    };
    let outlived_too = outlived.clone();
    options
        .map_sqlx_postgres_before_acquire(move |_, meta| {
            let old = outlived(meta.age);
            Box::pin(async move { Ok(!old) })
        })
        .map_sqlx_mysql_before_acquire(move |_, meta| {
            let old = outlived_too(meta.age);
            Box::pin(async move { Ok(!old) })
        });
    Ok(Database::connect(options).await?)
}

/// Fails unless the server answers and takes writes.
pub async fn takes_writes(db: &DatabaseConnection) -> Result<()> {
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
