//! Raises the limit of file descriptors and divides it, so that the connections of callers never use up the descriptors
//! that stores and the database need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    config::Config,
    domain::descriptors::{Demand, MIN_DESCRIPTORS, connections},
};

/// The limit of file descriptors is too low.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit of file descriptors is {limit}, and at least {MIN_DESCRIPTORS} are needed; raise the hard limit (ulimit -Hn, LimitNOFILE)"
)]
pub struct TooFew {
    limit: u64,
}

/// Raises the soft limit of the process to the hard limit. Returns the resulting limit.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current.unwrap_or(u64::MAX);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "failed to raise the limit of file descriptors to the hard limit; keeping the soft limit");
            current.unwrap_or(u64::MAX)
        }
    }
}

/// Returns the number of connections that each of `listeners` may have open: the configured number, or fewer if the
/// limit of file descriptors requires that.
pub fn divide(config: &Config, listeners: usize) -> Result<usize, TooFew> {
    let limit = raise();
    let configured = config.server.max_connections;
    let demand = Demand {
        connections: configured as u64,
        listeners: listeners as u64,
        database: config.database.connections.into(),
        regions: config.region.len() as u64,
        // A region may have twice as many copies when regions share a transfer (`worker::lanes`).
        copies: 2 * config.worker.concurrency as u64,
    };
    let allowed = connections(limit, demand).ok_or(TooFew { limit })?;
    if allowed < configured as u64 {
        tracing::warn!(
            configured,
            allowed,
            limit,
            "server.max_connections exceeds the limit of file descriptors, of which stores and the database need a part; \
             accepting fewer connections (raise the hard limit: ulimit -Hn, LimitNOFILE)"
        );
    }
    Ok(usize::try_from(allowed).unwrap_or(usize::MAX))
}
