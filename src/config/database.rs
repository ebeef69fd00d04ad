//! `[database]`.

use std::{fmt, time::Duration};

use serde::Deserialize;

use super::{Error, positive, value};
use crate::db;

/// `[database]`: where the state is kept.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `sqlite://PATH`, `postgres://USER:PASSWORD@HOST/NAME` or `mysql://USER:PASSWORD@HOST/NAME`.
    pub url: String,
    /// Connections of a process that read. A few more write.
    #[serde(default = "connections")]
    pub connections: u32,
    /// How long one question to the database, or one transaction, may take, in milliseconds. On SQLite, where those that write wait for
    /// each other, a transaction may take three times as long.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
}

fn connections() -> u32 {
    4
}

fn timeout_ms() -> u64 {
    5_000
}

/// The URL may hold a password.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl Database {
    /// Refuses what can't be used. The URL is not repeated: it may hold a password.
    pub(super) fn check(&self) -> Result<(), Error> {
        positive("database", &[("connections", self.connections.into()), ("timeout_ms", self.timeout_ms)])?;
        let scheme = self.url.split(':').next().unwrap_or_default();
        let expected = "expected sqlite://PATH, postgres://USER@HOST/NAME or mysql://USER@HOST/NAME";
        if !["sqlite", "postgres", "postgresql", "mysql"].contains(&scheme) {
            return Err(value(
                "database.url",
                format!("{scheme:?} is no database that this version works with; {expected}"),
            ));
        }
        match url::Url::parse(&self.url) {
            Ok(_) => Ok(()),
            Err(error) => Err(value("database.url", format!("{error}; {expected}"))),
        }
    }

    /// What the state needs to know.
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
