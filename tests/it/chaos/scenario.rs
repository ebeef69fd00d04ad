//! The failure scenarios. Scenarios that also occur in the most comprehensive comparison of PostgreSQL queues
//! (`hardbyte/postgresql-job-queue-benchmarking`) have the same names as there.

/// A failure scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A worker is killed and restarted later.
    CrashRecovery,
    /// A server is killed.
    ServerKill,
    /// One process is killed repeatedly.
    RepeatedKills,
    /// PostgreSQL is restarted, gracefully or not.
    PostgresRestart,
    /// An administrator terminates sessions of the database.
    BackendKill,
    /// The leader is killed.
    LeaderFailover,
    /// Other clients use up the connections of the database.
    PoolExhaustion,
    /// A registry is unavailable: every copy to it fails and is retried.
    RetryStorm,
    /// One region has many more pending copies than its limit. Another region must not wait for them.
    Starvation,
    /// A process is paused for longer than its leases, and then continues.
    Paused,
    /// Every connection to the database is cut.
    ConnectionCuts,
    /// An open transaction holds an old snapshot.
    IdleTransaction,
    /// Clients make far more calls than usual.
    SustainedOverload,
    /// Clients read without pauses while a long query runs.
    ActiveReaders,
    /// A registry accepts connections but does not respond.
    SilentStore,
    /// The disk of a region blocks every write. Skipped unless the test runs as root.
    FrozenDisk,
    /// An image is removed while it is requested, and another image is registered under the same id.
    RemovalRace,
    /// The database's clock is set forward or back.
    ClockStep,
    /// A region whose store is unavailable is removed from the configuration of all processes, then added again.
    RegionTakenOut,
}

impl Scenario {
    pub const ALL: [Self; 19] = [
        Self::CrashRecovery,
        Self::RepeatedKills,
        Self::PostgresRestart,
        Self::BackendKill,
        Self::LeaderFailover,
        Self::PoolExhaustion,
        Self::RetryStorm,
        Self::Starvation,
        Self::IdleTransaction,
        Self::SustainedOverload,
        Self::ActiveReaders,
        Self::ServerKill,
        Self::Paused,
        Self::ConnectionCuts,
        Self::SilentStore,
        Self::FrozenDisk,
        Self::RemovalRace,
        Self::ClockStep,
        Self::RegionTakenOut,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::CrashRecovery => "crash recovery",
            Self::ServerKill => "server kill",
            Self::RepeatedKills => "repeated kills",
            Self::PostgresRestart => "PostgreSQL restart",
            Self::BackendKill => "backend kill",
            Self::LeaderFailover => "leader failover",
            Self::PoolExhaustion => "pool exhaustion",
            Self::RetryStorm => "retry storm",
            Self::Starvation => "starvation",
            Self::Paused => "paused process",
            Self::ConnectionCuts => "connection cuts",
            Self::IdleTransaction => "idle transaction",
            Self::SustainedOverload => "sustained overload",
            Self::ActiveReaders => "active readers",
            Self::SilentStore => "silent store",
            Self::FrozenDisk => "frozen disk",
            Self::RemovalRace => "removal race",
            Self::ClockStep => "clock step",
            Self::RegionTakenOut => "region taken out",
        }
    }

    /// Returns the relative probability of the scenario.
    pub fn weight(self) -> u32 {
        match self {
            Self::CrashRecovery | Self::ServerKill | Self::RepeatedKills => 6,
            Self::LeaderFailover | Self::Paused | Self::BackendKill | Self::ConnectionCuts => 3,
            _ => 1,
        }
    }
}
