//! The section `[database]`: the connection to the database.

use std::{fmt, time::Duration};

use serde::Deserialize;

use super::{Error, invalid, positive};
use crate::db;

/// `[database]`: the connection to the database.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// The URL: `sqlite://PATH`, `postgres://USER:PASSWORD@HOST/NAME` or `mysql://USER:PASSWORD@HOST/NAME`.
    pub url: String,
    /// The number of connections of a process for reads. A few more are used for writes.
    #[serde(default = "connections")]
    pub connections: u32,
    /// The time limit of a statement or transaction, in milliseconds. On SQLite, where writers wait for each other, a
    /// transaction may take three times as long.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
}

fn connections() -> u32 {
    4
}

fn timeout_ms() -> u64 {
    5_000
}

/// Omits the URL, which may contain a password.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl Database {
    /// Rejects invalid values. The error omits the URL, which may contain a password.
    pub(super) fn check(&self) -> Result<(), Error> {
        positive("database", &[("connections", self.connections.into()), ("timeout_ms", self.timeout_ms)])?;
        let scheme = self.url.split(':').next().unwrap_or_default();
        let expected = "expected sqlite://PATH, postgres://USER@HOST/NAME or mysql://USER@HOST/NAME";
        if !["sqlite", "postgres", "postgresql", "mysql"].contains(&scheme) {
            return Err(invalid("database.url", format!("{scheme:?} is not a supported database; {expected}")));
        }
        match url::Url::parse(&self.url) {
            Ok(_) => Ok(()),
            Err(error) => Err(invalid("database.url", format!("{error}; {expected}"))),
        }
    }

    /// Returns the settings of the database layer.
    #[must_use]
    pub fn settings(&self) -> db::Settings {
        let timeout = Duration::from_millis(self.timeout_ms);
        let settings = db::Settings::new(self.url.clone());
        db::Settings {
            readers: self.connections,
            timeout,
            acquire_timeout: settings.acquire_timeout.min(timeout),
            ..settings
        }
    }
}
