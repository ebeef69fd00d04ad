//! Settings of the database layer.

use std::{fmt, time::Duration};

use domain::Clock;

use crate::system_clock;

/// Settings of the database layer.
#[derive(Clone)]
pub struct Settings {
    /// The database's URL: `sqlite://PATH`, `postgres://…` or `mysql://…`. It may contain a password, so `Debug` shows
    /// only the scheme.
    pub url: String,
    /// Number of connections that read. Connections that write are counted separately.
    pub readers: u32,
    /// Maximum wait for a connection or for another process's lock on the database.
    pub acquire_timeout: Duration,
    /// Maximum duration of one query or transaction.
    pub timeout: Duration,
    /// Maximum number of calls that wait for a commit; further calls are rejected.
    pub accept_queue: usize,
    /// Maximum number of calls in one commit.
    pub accept_batch: usize,
    /// Interval at which watched synchronizations are read if no change is notified.
    pub poll: Duration,
    /// Wall clock that is used for databases that one process owns.
    pub clock: Clock,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("url", &self.scheme()).field("readers", &self.readers).finish_non_exhaustive()
    }
}

impl Settings {
    /// Returns the default settings for a database.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self {
            url,
            readers: 4,
            acquire_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            accept_queue: 4_096,
            accept_batch: 512,
            poll: Duration::from_millis(500),
            clock: system_clock(),
        }
    }

    /// Returns the scheme of the URL.
    pub(super) fn scheme(&self) -> &str {
        self.url.split(':').next().unwrap_or_default()
    }

    /// Whether the database is SQLite, which one process owns.
    pub(super) fn is_sqlite(&self) -> bool {
        self.scheme() == "sqlite"
    }
}
