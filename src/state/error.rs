//! Why the state refuses, or can't answer.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, mysql::MySqlDatabaseError, postgres::PgDatabaseError},
};

use crate::domain::{Digest, ImageId, RegionId, RequestId};

/// A result of the state.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the state refuses, or can't answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No image of that id is registered.
    #[error("no image {0} is registered")]
    ImageNotFound(ImageId),
    /// An image of that id is registered already.
    #[error("an image {0} is registered already")]
    ImageExists(ImageId),
    /// Another image has the name, and another content.
    #[error("the name {name} belongs to the image {by}, which has the digest {root}")]
    NameTaken {
        /// The name.
        name: String,
        /// The image that has it.
        by: ImageId,
        /// That image's root.
        root: Digest,
    },
    /// Another image has taken the image's name over.
    #[error("the image {image} was superseded by {by}, which has its name now")]
    ImageSuperseded {
        /// The image.
        image: ImageId,
        /// The one that has its name.
        by: ImageId,
    },
    /// The image is in these regions already; one of them may be its home.
    #[error("the image {image} is in {} already", list(.regions))]
    ImageAlreadyThere {
        /// The image.
        image: ImageId,
        /// The regions that have it.
        regions: Vec<RegionId>,
    },
    /// The image is being copied to these regions.
    #[error("the image {image} is being copied to {}", list(.regions))]
    ImageInUse {
        /// The image.
        image: ImageId,
        /// Where a copy is in flight.
        regions: Vec<RegionId>,
    },
    /// No synchronization has that id.
    #[error("there is no synchronization {0}")]
    SynchronizationNotFound(RequestId),
    /// The client token came with other parameters before.
    #[error("the token was used for a call with other parameters before, {0}")]
    TokenReused(RequestId),
    /// More calls wait to be committed than may.
    #[error("too many calls wait to be committed")]
    Busy,
    /// The service is shutting down.
    #[error("the service is shutting down")]
    Closed,
    /// The database can't be reached, is locked by somebody else, or its pool is exhausted.
    #[error("the database can't be reached")]
    Unavailable(#[source] Arc<DbErr>),
    /// The database did not answer in time. Whether what was asked was carried out is not known.
    #[error("the database did not answer within {0:?}")]
    Slow(Duration),
    /// The server takes no writes: it is not, or not any more, the one that does.
    #[error("the database takes no writes")]
    ReadOnly,
    /// Others changed the same at the same time. Nothing was done; the same may be tried again at once.
    #[error("others changed the same at the same time")]
    Conflict(#[source] Option<Arc<DbErr>>),
    /// Any other failure of the database.
    #[error("the database failed")]
    Database(#[source] Arc<DbErr>),
    /// The database's schema is older than the service.
    #[error("the database's schema is {0} steps behind; run `appferry migrate`")]
    SchemaOld(usize),
    /// The database's schema is newer than the service.
    #[error(
        "the database's schema is newer than this version knows; run the version that brought it up to date, or a later one"
    )]
    SchemaNewer(#[source] Arc<DbErr>),
    /// Another process changes the schema.
    #[error("another process has been changing the database's schema for {0:?}; try again when it has ended")]
    SchemaLocked(Duration),
    /// Another process serves the database, which is one for a single process.
    #[error(
        "{} is in use by another appferry; SQLite serves one process: stop the other one, or keep the state in PostgreSQL or MySQL",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file beside the database can't be locked.
    #[error("{} can't be locked", .0.display())]
    Lock(PathBuf, #[source] Arc<std::io::Error>),
    /// The URL names a database that the service does not work with.
    #[error("database.url: {0:?} is no database that this version works with")]
    UnknownDatabase(String),
}

fn list(regions: &[RegionId]) -> String {
    regions.iter().map(RegionId::as_str).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// An error of the migrator: a schema that it does not know, unless the database itself failed.
    pub(super) fn schema(error: DbErr) -> Self {
        match error {
            DbErr::Custom(_) | DbErr::Migration(_) => Self::SchemaNewer(Arc::new(error)),
            other => other.into(),
        }
    }

    /// Whether the same may succeed a little later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Slow(_) | Self::ReadOnly | Self::Conflict(_) | Self::Busy)
    }
}

/// What a failure of the database means for whoever asked.
enum Meaning {
    Unreachable,
    ReadOnly,
    Conflict,
    Other,
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let meaning = match &error {
            DbErr::Exec(RuntimeErr::SqlxError(cause))
            | DbErr::Query(RuntimeErr::SqlxError(cause))
            | DbErr::Conn(RuntimeErr::SqlxError(cause)) => meaning(cause, matches!(error, DbErr::Conn(_))),
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Meaning::Unreachable,
            _ => Meaning::Other,
        };
        match meaning {
            Meaning::Unreachable => Self::Unavailable(Arc::new(error)),
            Meaning::ReadOnly => Self::ReadOnly,
            Meaning::Conflict => Self::Conflict(Some(Arc::new(error))),
            Meaning::Other => Self::Database(Arc::new(error)),
        }
    }
}

/// What the driver's error means; `connecting` if it came when a connection was made, or used in no statement.
fn meaning(error: &sqlx::Error, connecting: bool) -> Meaning {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Meaning::Unreachable,
        sqlx::Error::Database(cause) => {
            let cause = cause.as_ref();
            let known = if let Some(error) = cause.try_downcast_ref::<PgDatabaseError>() {
                postgres(error.code())
            } else if let Some(error) = cause.try_downcast_ref::<MySqlDatabaseError>() {
                mysql(error.number())
            } else {
                sqlite(cause.code().and_then(|code| code.parse().ok()))
            };
            if connecting && matches!(known, Meaning::Other) { Meaning::Unreachable } else { known }
        }
        _ if connecting => Meaning::Unreachable,
        _ => Meaning::Other,
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn postgres(code: &str) -> Meaning {
    match code {
        // Serialization failure, deadlock, and two who inserted the same.
        "40001" | "40P01" | "23505" => Meaning::Conflict,
        "25006" => Meaning::ReadOnly,
        // A lock or an answer that took too long; the administrator's shutdown, a crash, a server that starts, a session that idled.
        "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" | "58030" => Meaning::Unreachable,
        // Connection exceptions, and resources that are used up: connections, memory, the disk.
        _ if code.starts_with("08") || code.starts_with("53") => Meaning::Unreachable,
        _ => Meaning::Other,
    }
}

/// <https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html>
fn mysql(number: u16) -> Meaning {
    match number {
        // A duplicate key, a deadlock, and a record that changed since it was read (MariaDB).
        1062 | 1213 | 1020 => Meaning::Conflict,
        // --read-only, super-read-only, a transaction on a read-only server.
        1290 | 1792 | 1836 => Meaning::ReadOnly,
        // Disk full, too many connections, out of resources, shutdown, aborted, lock wait, table full, killed, time, rollback by the
        // server.
        1021 | 1040 | 1041 | 1053 | 1114 | 1152 | 1158..=1161 | 1203 | 1205 | 1226 | 1317 | 1927 | 1969 | 3024 => {
            Meaning::Unreachable
        }
        _ => Meaning::Other,
    }
}

/// <https://sqlite.org/rescode.html>; the low byte of an extended code is its primary code. A damaged file (`SQLITE_CORRUPT`,
/// `SQLITE_NOTADB`) does not pass.
fn sqlite(code: Option<u32>) -> Meaning {
    match code {
        // SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE: two who inserted the same.
        Some(1555 | 2067) => Meaning::Conflict,
        Some(code) => match code & 0xff {
            // SQLITE_READONLY.
            8 => Meaning::ReadOnly,
            // SQLITE_BUSY, LOCKED, NOMEM, IOERR, FULL, CANTOPEN, PROTOCOL: another lock, the disk, or a limit of the process.
            5 | 6 | 7 | 10 | 13 | 14 | 15 => Meaning::Unreachable,
            _ => Meaning::Other,
        },
        None => Meaning::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Meaning, sqlite};

    #[test]
    fn what_a_disk_does_passes_and_a_damaged_file_does_not() {
        // SQLITE_FULL, SQLITE_IOERR_FSYNC, SQLITE_CANTOPEN_ISDIR, SQLITE_BUSY_SNAPSHOT, SQLITE_PROTOCOL.
        for code in [13, 1034, 526, 517, 15] {
            assert!(matches!(sqlite(Some(code)), Meaning::Unreachable), "{code}");
        }
        // SQLITE_READONLY_DBMOVED.
        assert!(matches!(sqlite(Some(1032)), Meaning::ReadOnly));
        // SQLITE_CORRUPT_INDEX, SQLITE_NOTADB, SQLITE_CONSTRAINT_NOTNULL.
        for code in [779, 26, 1299] {
            assert!(matches!(sqlite(Some(code)), Meaning::Other), "{code}");
        }
    }
}
