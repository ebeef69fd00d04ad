//! Why the state refuses, or can't answer.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, sqlx};

use crate::domain::{ImageId, RegionId, RequestId};

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
    /// Any other failure of the database.
    #[error("the database failed")]
    Database(#[source] Arc<DbErr>),
    /// The database's schema is older than the service.
    #[error("the database's schema is {0} steps behind; run `appferry migrate`")]
    SchemaOld(usize),
    /// The database's schema can't be brought up to date, or is newer than the service.
    #[error("the database's schema is not one that this version knows; it may have been written by a newer one")]
    SchemaUnknown(#[source] Arc<DbErr>),
    /// The URL names a database that the service does not work with.
    #[error("database.url: {0:?} is no database that this version works with; expected sqlite://PATH")]
    UnknownDatabase(String),
}

fn list(regions: &[RegionId]) -> String {
    regions.iter().map(RegionId::as_str).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// An error of the migrator: a schema that it does not know, unless the database itself failed.
    pub(super) fn schema(error: DbErr) -> Self {
        match error {
            DbErr::Custom(_) | DbErr::Migration(_) => Self::SchemaUnknown(Arc::new(error)),
            other => other.into(),
        }
    }

    /// Whether the same may succeed a little later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy)
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let unreachable = match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => true,
            DbErr::Exec(RuntimeErr::SqlxError(cause)) | DbErr::Query(RuntimeErr::SqlxError(cause)) => {
                is_unreachable(cause)
            }
            _ => false,
        };
        let error = Arc::new(error);
        if unreachable { Self::Unavailable(error) } else { Self::Database(error) }
    }
}

fn is_unreachable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        // https://sqlite.org/rescode.html: SQLITE_BUSY is 5, SQLITE_LOCKED is 6; the low byte of an extended code is its
        // primary code.
        sqlx::Error::Database(cause) => {
            cause.code().and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| matches!(code & 0xff, 5 | 6))
        }
        _ => false,
    }
}
