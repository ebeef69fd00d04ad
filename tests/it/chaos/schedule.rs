//! The schedule of failures, drawn from a seed. Scenarios that occur in the most comprehensive comparison of PostgreSQL
//! queues (`hardbyte/postgresql-job-queue-benchmarking`) have its names.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::Signal;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use tokio::time::{Instant, sleep};

use super::{
    Figures, LEASE, Run, STALL,
    cast::{Cast, PASSING, SERVERS},
    clients::{self, Clients, REST},
};
use crate::harness::database;

/// A failure scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A worker is killed and restarted later.
    CrashRecovery,
    /// A server is killed.
    ServerKill,
    /// One process is killed repeatedly.
    RepeatedKills,
    /// PostgreSQL is restarted, gracefully or not.
    PostgresRestart,
    /// An administrator terminates sessions.
    BackendKill,
    /// The leader is killed.
    LeaderFailover,
    /// Other clients take every connection of the database.
    PoolExhaustion,
    /// A registry is unavailable: every copy to it fails and is retried.
    RetryStorm,
    /// One region has more pending copies than it can take; another region must not wait for them.
    Starvation,
    /// A process is paused for longer than its leases, and then continues.
    Paused,
    /// Every connection to the database is cut.
    ConnectionCuts,
    /// An open transaction holds an old snapshot.
    IdleTransaction,
    /// Far more calls than usual.
    SustainedOverload,
    /// Readers without pauses, and a long query.
    ActiveReaders,
    /// A registry accepts connections and does not respond.
    SilentStore,
    /// The disk of a region blocks every write. Skipped without root.
    FrozenDisk,
    /// An image is removed while it is requested, and another one is registered under its id.
    RemovalRace,
    /// The database's clock is set forward or back.
    ClockStep,
    /// A region whose store is unavailable is removed from the configuration of all processes, and restored.
    RegionTakenOut,
}

impl Act {
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

    fn name(self) -> &'static str {
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

    /// The relative probability of the scenario.
    fn weight(self) -> u32 {
        match self {
            Self::CrashRecovery | Self::ServerKill | Self::RepeatedKills => 6,
            Self::LeaderFailover | Self::Paused | Self::BackendKill | Self::ConnectionCuts => 3,
            _ => 1,
        }
    }
}

/// Runs the schedule.
pub async fn play(cast: &mut Cast, clients: &Clients, run: &Run, random: &mut StdRng, figures: &mut Figures) {
    let until = Instant::now() + run.lasts;
    let mut acts: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut first = run.first.iter().copied();
    let mut told = Instant::now();
    loop {
        let act = match first.next() {
            Some(act) => act,
            None if Instant::now() >= until => break,
            None => *Act::ALL.choose_weighted(random, |act| act.weight()).expect("there are some"),
        };
        *acts.entry(act.name()).or_default() += 1;
        figures.kills += perform(act, cast, clients, random, figures).await;
        // Restarts processes that exited because the database was unavailable when they started.
        for member in &mut cast.members {
            member.start();
        }
        sleep(Duration::from_millis(random.random_range(200..2_500))).await;
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            println!("{} calls acknowledged, {} processes killed", clients.shared.ledger.count(), figures.kills);
        }
    }
    figures.acts = acts.into_iter().collect();
    figures.unavailable = clients.shared.unavailable.load(Ordering::Relaxed);
}

/// Runs one scenario, and returns how many processes were killed.
async fn perform(act: Act, cast: &mut Cast, clients: &Clients, random: &mut StdRng, figures: &mut Figures) -> usize {
    let millis = |random: &mut StdRng, range| Duration::from_millis(random.random_range(range));
    let mut kills = 0;
    match act {
        Act::CrashRecovery | Act::ServerKill | Act::RepeatedKills => kills += kill_some(act, cast, random).await,
        Act::PostgresRestart => {
            cast.database.stop(if random.random_bool(0.5) { "fast" } else { "immediate" });
            sleep(millis(random, 100..4_000)).await;
            cast.database.resume();
        }
        Act::BackendKill => {
            for _ in 0..5 {
                if let Some(admin) = admin(cast).await {
                    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                WHERE application_name = 'appferry' AND random() < 0.5";
                    let _ = admin.execute_unprepared(kill).await;
                }
                sleep(millis(random, 50..500)).await;
            }
        }
        Act::LeaderFailover => {
            let leader = holder(cast).await;
            let is = |text: &str| cast.members.iter().position(|member| member.has_logged(text));
            if let Some(place) = leader.and_then(|id| is(&format!("elected leader id={id}"))) {
                let member = &mut cast.members[place];
                kills += usize::from(member.kill());
                sleep(millis(random, 100..5_000)).await;
                member.start();
            }
        }
        Act::PoolExhaustion => {
            let others = take_connections(cast).await;
            sleep(millis(random, 1_000..5_000)).await;
            drop(others);
        }
        Act::RetryStorm => {
            let registry = random.random_range(0..cast.registries.len());
            cast.registries[registry].stop();
            sleep(millis(random, 2_000..6_000)).await;
            cast.registries[registry].restart().await;
        }
        Act::SilentStore => {
            let registry = &cast.registries[random.random_range(0..cast.registries.len())];
            registry.signal(Signal::STOP);
            // Longer than the stall timeout.
            sleep(STALL + millis(random, 500..4_000)).await;
            registry.signal(Signal::CONT);
        }
        Act::FrozenDisk => {
            if let Some(disk) = &cast.disk {
                disk.freeze();
                sleep(STALL + millis(random, 500..4_000)).await;
                disk.thaw();
            }
        }
        Act::RemovalRace => {
            let removed = clients::race_removal(&clients.shared).await;
            figures
                .notes
                .push(format!("an image was removed {removed} times while it was asked for, and registered again"));
        }
        Act::ClockStep => {
            let minutes = *[-60, -5, 0, 5, 60].choose(random).expect("there are some");
            cast.database.set_clock(minutes * 60);
            sleep(LEASE + millis(random, 500..3_000)).await;
        }
        Act::RegionTakenOut => kills += take_region_out(cast, figures).await,
        Act::Starvation => {
            let took = clients::starve(&clients.shared, 30).await;
            figures.notes.push(format!("with 30 images waiting for a region that takes two at a time, another region had its own after {took:?}"));
        }
        Act::Paused => {
            let members = cast.members.len();
            let member = &cast.members[random.random_range(0..members)];
            member.signal(Signal::STOP);
            sleep(LEASE + millis(random, 500..3_000)).await;
            member.signal(Signal::CONT);
        }
        Act::ConnectionCuts => {
            for _ in 0..3 {
                cast.switch.cut();
                sleep(millis(random, 50..800)).await;
            }
        }
        Act::IdleTransaction | Act::SustainedOverload | Act::ActiveReaders => burden(act, cast, clients, random).await,
    }
    kills
}

/// Kills a process once or several times, and restarts it. Returns the number of kills.
async fn kill_some(act: Act, cast: &mut Cast, random: &mut StdRng) -> usize {
    let members = match act {
        Act::ServerKill => 0..SERVERS,
        Act::CrashRecovery => SERVERS..cast.members.len(),
        _ => 0..cast.members.len(),
    };
    let member = &mut cast.members[random.random_range(members)];
    let (times, away, again) = if act == Act::RepeatedKills { (4, 0..1, 100..1_200) } else { (1, 100..2_000, 0..1) };
    let mut kills = 0;
    for _ in 0..times {
        kills += usize::from(member.kill());
        sleep(Duration::from_millis(random.random_range(away.clone()))).await;
        member.start();
        sleep(Duration::from_millis(random.random_range(again.clone()))).await;
    }
    kills
}

/// Removes a region from the configuration while its store is unavailable, until its pending copies have been
/// suspended; then restores both. Returns how many processes were killed.
async fn take_region_out(cast: &mut Cast, figures: &mut Figures) -> usize {
    let (store, away) = (cast.site.region(PASSING), cast.site.region("away"));
    std::fs::rename(&store, &away).expect("its store goes away");
    sleep(LEASE).await;
    let mut kills = cast.configure_passing_region(false);
    let suspended = format!("region is not configured any more; its copies are suspended region={PASSING}");
    let since = Instant::now();
    // The current leader may have suspended the copies before, or have none to suspend.
    while !cast.has_logged(&suspended) && since.elapsed() < Duration::from_secs(15) {
        sleep(Duration::from_millis(200)).await;
    }
    figures.notes.push(format!("a region was taken out for {:?}", since.elapsed()));
    std::fs::rename(&away, &store).expect("its store comes back");
    kills += cast.configure_passing_region(true);
    kills
}

/// Puts load on the database, or cuts it off, without killing it.
async fn burden(act: Act, cast: &Cast, clients: &Clients, random: &mut StdRng) {
    let millis = |random: &mut StdRng, range| Duration::from_millis(random.random_range(range));
    match act {
        Act::IdleTransaction => {
            if let Some(admin) = admin(cast).await {
                let open = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM replica";
                let _ = admin.execute_unprepared(open).await;
                sleep(millis(random, 5_000..15_000)).await;
                let _ = admin.execute_unprepared("ROLLBACK").await;
            }
        }
        Act::SustainedOverload => {
            clients.shared.rest.store(10, Ordering::Relaxed);
            sleep(millis(random, 5_000..10_000)).await;
            clients.shared.rest.store(REST, Ordering::Relaxed);
        }
        Act::ActiveReaders => {
            let readers: Vec<_> = (0..4).map(|_| tokio::spawn(clients::read(Arc::clone(&clients.shared)))).collect();
            if let Some(admin) = admin(cast).await {
                let long = "SELECT count(*), pg_sleep(4) FROM replica AS a JOIN synchronization_target AS b USING (region_id) \
                            WHERE b.attempt < 0";
                let _ = admin.execute_unprepared(long).await;
            }
            sleep(millis(random, 1_000..4_000)).await;
            for reader in readers {
                reader.abort();
            }
        }
        _ => {}
    }
}

async fn admin(cast: &Cast) -> Option<DatabaseConnection> {
    let mut options = sea_orm::ConnectOptions::new(cast.url());
    options.max_connections(1).connect_timeout(Duration::from_secs(2)).sqlx_logging(false);
    sea_orm::Database::connect(options).await.ok()
}

/// Returns the current leader.
async fn holder(cast: &Cast) -> Option<String> {
    let db = database::look(&cast.url()).await;
    let ask = "SELECT holder FROM duty WHERE held_until > 0".to_owned();
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, ask)).await.ok()??;
    row.try_get("", "holder").ok()
}

/// Takes every free connection of the database.
async fn take_connections(cast: &Cast) -> Vec<DatabaseConnection> {
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'appferry'";
    let Some(killer) = admin(cast).await else { return Vec::new() };
    let mut taken = vec![];
    for _ in 0..110 {
        let _ = killer.execute_unprepared(kill).await;
        match admin(cast).await {
            Some(connection) => taken.push(connection),
            None => break,
        }
    }
    taken.push(killer);
    taken
}
