//! Division of a process's file descriptors between the connections of callers and all other uses.

/// Minimum number of descriptors of a process.
pub const MIN_DESCRIPTORS: u64 = 256;
/// Descriptors that every process needs: standard streams, listeners, reloaded files.
const BASE: u64 = 64;
/// Descriptors of a database connection: on SQLite the file, the write-ahead log and its index.
const PER_DATABASE_CONNECTION: u64 = 3;
/// Database connections in addition to the configured ones.
const WRITERS: u64 = 12;
/// Descriptors of a copy in a region: blobs being read or written, connections to a store.
const PER_COPY: u64 = 16;

/// Configured demand of a process.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Maximum number of connections of each listener.
    pub connections: u64,
    /// Number of listeners.
    pub listeners: u64,
    /// Number of reading database connections.
    pub database: u64,
    /// Number of regions.
    pub regions: u64,
    /// Maximum number of concurrent copies into each region.
    pub copies: u64,
}

/// Returns the maximum number of open connections of each listener, or `None` if `limit` is too low for the process.
/// Reserves descriptors for the other uses, at most three quarters of `limit`, so that stores and the database never
/// lack descriptors.
#[must_use]
pub fn connections(limit: u64, demand: Demand) -> Option<u64> {
    if limit < MIN_DESCRIPTORS {
        return None;
    }
    let Demand { connections, listeners, database, regions, copies } = demand;
    let for_database = database.saturating_add(WRITERS).saturating_mul(PER_DATABASE_CONNECTION);
    let for_copies = copies.saturating_mul(regions.saturating_add(1)).saturating_mul(PER_COPY);
    let reserve = BASE.saturating_add(for_database).saturating_add(for_copies);
    let free = limit - reserve.min(limit / 4 * 3);
    Some(connections.min(free / listeners.max(1)))
}

#[cfg(test)]
mod tests {
    use super::{Demand, MIN_DESCRIPTORS, connections};

    const DEMAND: Demand = Demand { connections: 16_384, listeners: 2, database: 4, regions: 4, copies: 4 };

    #[test]
    fn connections_leave_descriptors_for_stores_and_the_database() {
        assert_eq!(connections(u64::MAX, DEMAND), Some(16_384));
        assert_eq!(connections(65_536, DEMAND), Some(16_384));
        // 64 + 16 * 3 + 4 * 5 * 16 are reserved.
        assert_eq!(connections(1_024, DEMAND), Some((1_024 - 432) / 2));
        // At most three quarters are reserved.
        assert_eq!(connections(1_024, Demand { copies: 1_000, ..DEMAND }), Some(128));
        assert_eq!(connections(1_024, Demand { copies: u64::MAX, ..DEMAND }), Some(128));
        assert_eq!(connections(MIN_DESCRIPTORS - 1, DEMAND), None);
        assert_eq!(connections(1_024, Demand { connections: 10, ..DEMAND }), Some(10));
    }
}
