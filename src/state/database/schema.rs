//! The schema: brought up to date by one process at a time, and checked by everybody.

use std::time::Duration;

use appferry_migrations::{Migrator, MigratorTrait as _};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};

use super::{super::Error, Demoted, Result, Settings, connect};

/// The lock under which a schema is changed: a number of its own for PostgreSQL, a name for MySQL.
const LOCK: i64 = 0x6170_7066_6572_7279;

/// How long a migration waits for another one to end.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Fails unless the schema is the one that this version knows.
pub async fn check(db: &DatabaseConnection) -> Result<()> {
    match behind(db).await? {
        0 => Ok(()),
        steps => Err(Error::SchemaOld(steps)),
    }
}

/// How many steps the schema lacks. Fails if it has steps that this version does not know.
async fn behind(db: &DatabaseConnection) -> Result<usize> {
    Ok(Migrator::get_pending_migrations_read_only(db).await.map_err(Error::schema)?.len())
}

/// Creates the database's schema if there is none, and brings it up to date. Whoever comes meanwhile waits. Returns how many steps
/// it took.
pub async fn migrate(settings: &Settings) -> Result<usize> {
    // A step may take longer than anything else that is asked of the database.
    let settings = Settings { timeout: Duration::from_secs(24 * 3600), ..settings.clone() };
    let db = connect(&settings, 1, &Demoted::default()).await?;
    lock(&db).await?;
    let steps = behind(&db).await?;
    if steps > 0 {
        Migrator::up(&db, None).await.map_err(Error::schema)?;
    }
    // The lock goes with the connection.
    db.close().await?;
    Ok(steps)
}

/// Waits for the lock, on the only connection that there is.
async fn lock(db: &DatabaseConnection) -> Result<()> {
    let backend = db.get_database_backend();
    let seconds = LOCK_WAIT.as_secs();
    match backend {
        DbBackend::Postgres => {
            db.execute_unprepared(&format!("SET lock_timeout = '{seconds}s'")).await?;
            db.execute_unprepared(&format!("SELECT pg_advisory_lock({LOCK})")).await?;
        }
        DbBackend::MySql => {
            let ask = format!("SELECT GET_LOCK('appferry_migrate', {seconds}) AS got");
            let row = db.query_one_raw(Statement::from_string(backend, ask)).await?;
            let got = row.and_then(|row| row.try_get::<Option<i64>>("", "got").ok().flatten());
            if got != Some(1) {
                return Err(Error::SchemaLocked(LOCK_WAIT));
            }
        }
        // SQLite's own lock on the file does.
        _ => {}
    }
    Ok(())
}
