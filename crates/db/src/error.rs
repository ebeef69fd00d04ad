//! Errors of the database layer.

use std::{path::PathBuf, sync::Arc, time::Duration};

use domain::{Digest, ImageId, RegionId, RequestId};
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, mysql::MySqlDatabaseError, postgres::PgDatabaseError},
};

/// A result of the database layer.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the database layer.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Error {
    /// No image with that id is registered.
    #[error("no image {0} is registered")]
    ImageNotFound(ImageId),
    /// An image with that id is already registered.
    #[error("the image {0} is already registered")]
    ImageExists(ImageId),
    /// Another image with other content has the name.
    #[error("the name {name} belongs to the image {by} with the digest {root}")]
    NameTaken {
        name: String,
        /// The image that owns it.
        by: ImageId,
        /// Digest of that image's root.
        root: Digest,
    },
    /// Another image has taken over the image's name.
    #[error("the image {image} was superseded by {by}, which now has its name")]
    ImageSuperseded {
        image: ImageId,
        /// The image that has its name.
        by: ImageId,
    },
    /// The image is already available in these regions; one of them may be its home region.
    #[error("the image {image} is already available in {}", list(.regions))]
    ImageAlreadyAvailable {
        image: ImageId,
        /// Regions that have it.
        regions: Vec<RegionId>,
    },
    /// The image is being copied to these regions.
    #[error("the image {image} is being copied to {}", list(.regions))]
    ImageInUse {
        image: ImageId,
        /// Destinations of the copies in flight.
        regions: Vec<RegionId>,
    },
    /// No synchronization has that id.
    #[error("no synchronization has the id {0}")]
    SynchronizationNotFound(RequestId),
    /// The client token was used with different parameters.
    #[error("client token already used by request {0} with different parameters")]
    TokenReused(RequestId),
    /// The commit queue is full.
    #[error("the commit queue is full; retry later")]
    Busy,
    /// The service is shutting down.
    #[error("the service is shutting down")]
    Closed,
    /// The database cannot be reached, is locked by another process, or its pool is exhausted.
    #[error("the database cannot be reached")]
    Unavailable(#[source] Arc<DbErr>),
    /// The database did not respond in time. The operation may or may not have been executed.
    #[error("the database did not respond within {0:?}")]
    Slow(Duration),
    /// The server rejects writes, for example after a failover.
    #[error("the database is read-only")]
    ReadOnly,
    /// Another transaction changed the same rows. Nothing was written, and the operation can be retried at once.
    #[error("write conflict; retry")]
    Conflict(#[source] Option<Arc<DbErr>>),
    /// Any other error of the database.
    #[error("the database failed")]
    Database(#[source] Arc<DbErr>),
    /// The database's schema is older than the service.
    #[error("the database's schema is {0} steps behind; run `appferry migrate`")]
    SchemaOld(usize),
    /// The database's schema is newer than the service.
    #[error("the database's schema is newer than this version; run the version that migrated it, or a later one")]
    SchemaNewer(#[source] Arc<DbErr>),
    /// Another process is migrating the schema.
    #[error("another process has been migrating the database's schema for {0:?}; retry when it has finished")]
    SchemaLocked(Duration),
    /// Another process owns the SQLite database.
    #[error(
        "{} is in use by another appferry process; stop it, or use PostgreSQL or MySQL, which several processes can share",
        .0.display()
    )]
    InUse(PathBuf),
    /// The lock or key file beside the database cannot be opened.
    #[error("{} cannot be opened or locked", .0.display())]
    Lock(PathBuf, #[source] Arc<std::io::Error>),
    /// The URL names an unsupported database.
    #[error("database.url: unsupported scheme {0:?}; use sqlite, postgres or mysql")]
    UnknownDatabase(String),
}

fn list(regions: &[RegionId]) -> String {
    regions.iter().map(RegionId::as_str).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// Converts an error of the migrator. An error that is not one of the database means an unknown schema.
    pub(super) fn schema(error: DbErr) -> Self {
        match error {
            DbErr::Custom(_) | DbErr::Migration(_) => Self::SchemaNewer(Arc::new(error)),
            other => other.into(),
        }
    }

    /// Whether a retry may succeed.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Slow(_) | Self::ReadOnly | Self::Conflict(_) | Self::Busy)
    }
}

/// The meaning of a database error for the caller.
enum Category {
    Unreachable,
    ReadOnly,
    Conflict,
    Other,
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let category = match &error {
            DbErr::Exec(RuntimeErr::SqlxError(cause))
            | DbErr::Query(RuntimeErr::SqlxError(cause))
            | DbErr::Conn(RuntimeErr::SqlxError(cause)) => categorize(cause, matches!(error, DbErr::Conn(_))),
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Category::Unreachable,
            _ => Category::Other,
        };
        match category {
            Category::Unreachable => Self::Unavailable(Arc::new(error)),
            Category::ReadOnly => Self::ReadOnly,
            Category::Conflict => Self::Conflict(Some(Arc::new(error))),
            Category::Other => Self::Database(Arc::new(error)),
        }
    }
}

/// Categorizes an error of the driver. `connecting` is true for an error outside a statement.
fn categorize(error: &sqlx::Error, connecting: bool) -> Category {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Category::Unreachable,
        sqlx::Error::Database(cause) => {
            let cause = cause.as_ref();
            let category = if let Some(error) = cause.try_downcast_ref::<PgDatabaseError>() {
                postgres(error.code())
            } else if let Some(error) = cause.try_downcast_ref::<MySqlDatabaseError>() {
                mysql(error.number())
            } else {
                sqlite(cause.code().and_then(|code| code.parse().ok()))
            };
            if connecting && matches!(category, Category::Other) { Category::Unreachable } else { category }
        }
        _ if connecting => Category::Unreachable,
        _ => Category::Other,
    }
}

/// Categorizes an SQLSTATE code (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
fn postgres(code: &str) -> Category {
    match code {
        // Serialization failure, deadlock, unique violation.
        "40001" | "40P01" | "23505" => Category::Conflict,
        "25006" => Category::ReadOnly,
        // Lock not available, query canceled, administrator shutdown, crash shutdown, cannot connect now, database
        // dropped, idle session timeout, idle in transaction timeout, I/O error.
        "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" | "58030" => {
            Category::Unreachable
        }
        // Connection exceptions, insufficient resources.
        _ if code.starts_with("08") || code.starts_with("53") => Category::Unreachable,
        _ => Category::Other,
    }
}

/// Categorizes an error number (<https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html>).
fn mysql(number: u16) -> Category {
    match number {
        // Duplicate key, deadlock, record changed since the last read (MariaDB).
        1062 | 1213 | 1020 => Category::Conflict,
        // The server runs with --read-only or super-read-only, or the transaction is read-only.
        1290 | 1792 | 1836 => Category::ReadOnly,
        // Disk full, too many connections, out of resources, shutdown, aborted connection, lock wait timeout, table
        // full, killed, query timeout, rollback by the server.
        1021 | 1040 | 1041 | 1053 | 1114 | 1152 | 1158..=1161 | 1203 | 1205 | 1226 | 1317 | 1927 | 1969 | 3024 => {
            Category::Unreachable
        }
        _ => Category::Other,
    }
}

/// Categorizes a result code (<https://sqlite.org/rescode.html>). The low byte of an extended code is its primary code.
/// A damaged file (`SQLITE_CORRUPT`, `SQLITE_NOTADB`) is not temporary.
fn sqlite(code: Option<u32>) -> Category {
    match code {
        // SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE.
        Some(1555 | 2067) => Category::Conflict,
        Some(code) => match code & 0xff {
            // SQLITE_READONLY.
            8 => Category::ReadOnly,
            // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_NOMEM, SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN, SQLITE_PROTOCOL.
            5 | 6 | 7 | 10 | 13 | 14 | 15 => Category::Unreachable,
            _ => Category::Other,
        },
        None => Category::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Category, sqlite};

    #[test]
    fn disk_errors_are_temporary_and_damaged_files_are_not() {
        // SQLITE_FULL, SQLITE_IOERR_FSYNC, SQLITE_CANTOPEN_ISDIR, SQLITE_BUSY_SNAPSHOT, SQLITE_PROTOCOL.
        for code in [13, 1034, 526, 517, 15] {
            assert!(matches!(sqlite(Some(code)), Category::Unreachable), "{code}");
        }
        // SQLITE_READONLY_DBMOVED.
        assert!(matches!(sqlite(Some(1032)), Category::ReadOnly));
        // SQLITE_CORRUPT_INDEX, SQLITE_NOTADB, SQLITE_CONSTRAINT_NOTNULL.
        for code in [779, 26, 1299] {
            assert!(matches!(sqlite(Some(code)), Category::Other), "{code}");
        }
    }
}
