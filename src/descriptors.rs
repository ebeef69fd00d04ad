//! File descriptors: the soft limit is raised to the hard one, and divided so that connections of callers never take those that stores
//! and the database need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    config::Config,
    domain::descriptors::{Demand, MIN_DESCRIPTORS, connections},
};

/// There are too few file descriptors to work with.
#[derive(Debug, thiserror::Error)]
#[error(
    "the process may open {limit} files and connections and needs {MIN_DESCRIPTORS} at least; raise the hard limit (ulimit -Hn, LimitNOFILE)"
)]
pub struct TooFew {
    limit: u64,
}

/// Raises the soft limit of the process to the hard one. Returns how many descriptors it may have open.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current.unwrap_or(u64::MAX);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of file descriptors can't be raised to the hard limit");
            current.unwrap_or(u64::MAX)
        }
    }
}

/// How many connections each of so many listeners may have open: as many as are configured, unless the limit of file descriptors allows
/// fewer.
pub fn divide(config: &Config, listeners: usize) -> Result<usize, TooFew> {
    let limit = raise();
    let configured = config.server.max_connections;
    let demand = Demand {
        connections: configured as u64,
        listeners: listeners as u64,
        database: config.database.connections.into(),
        regions: config.region.len() as u64,
        // Regions that keep up with each other have twice as many (`worker::lanes`).
        copies: 2 * config.worker.concurrency as u64,
    };
    let allowed = connections(limit, demand).ok_or(TooFew { limit })?;
    if allowed < configured as u64 {
        tracing::warn!(
            configured,
            allowed,
            limit,
            "server.max_connections is more than the limit of file descriptors allows beside stores and the database; fewer \
             connections are accepted (raise the hard limit: ulimit -Hn, LimitNOFILE)"
        );
    }
    Ok(usize::try_from(allowed).unwrap_or(usize::MAX))
}
