//! How the file descriptors of a process are divided between the connections of callers and everything else.

/// The fewest descriptors that a process can work with.
pub const FEWEST: u64 = 256;
/// Descriptors that a process needs whatever it does: its output, its listeners, the files that it reads again.
const BASE: u64 = 64;
/// Descriptors of one connection to the database: on SQLite the file, its log and the index of that.
const OF_DATABASE: u64 = 3;
/// Connections to the database beside those that are configured.
const WRITERS: u64 = 12;
/// Descriptors of one region in one copy: blobs that are read or written, connections to a service.
const OF_COPY: u64 = 16;

/// What a process is configured to do.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Connections that each listener may have open.
    pub connections: u64,
    /// Listeners.
    pub listeners: u64,
    /// Connections to the database that read.
    pub database: u64,
    /// Regions.
    pub regions: u64,
    /// Images that are copied at the same time.
    pub copies: u64,
}

/// How many connections each listener may have open, so that stores and the database never lack descriptors; nothing if there are
/// too few for the process to work. What is kept back is what the demand may take, three quarters of all at most.
#[must_use]
pub fn connections(limit: u64, demand: Demand) -> Option<u64> {
    if limit < FEWEST {
        return None;
    }
    let Demand { connections, listeners, database, regions, copies } = demand;
    let of_database = (database + WRITERS).saturating_mul(OF_DATABASE);
    let of_copies = copies.saturating_mul(regions + 1).saturating_mul(OF_COPY);
    let reserve = BASE.saturating_add(of_database).saturating_add(of_copies);
    let free = limit - reserve.min(limit / 4 * 3);
    Some(connections.min(free / listeners.max(1)))
}

#[cfg(test)]
mod tests {
    use super::{Demand, FEWEST, connections};

    const DEMAND: Demand = Demand { connections: 16_384, listeners: 2, database: 4, regions: 4, copies: 4 };

    #[test]
    fn connections_leave_what_stores_and_the_database_need() {
        assert_eq!(connections(u64::MAX, DEMAND), Some(16_384));
        assert_eq!(connections(65_536, DEMAND), Some(16_384));
        // 64 + 16 * 3 + 4 * 5 * 16 are kept back.
        assert_eq!(connections(1_024, DEMAND), Some((1_024 - 432) / 2));
        // Three quarters at most.
        assert_eq!(connections(1_024, Demand { copies: 1_000, ..DEMAND }), Some(128));
        assert_eq!(connections(1_024, Demand { copies: u64::MAX, ..DEMAND }), Some(128));
        assert_eq!(connections(FEWEST - 1, DEMAND), None);
        assert_eq!(connections(1_024, Demand { connections: 10, ..DEMAND }), Some(10));
    }
}
