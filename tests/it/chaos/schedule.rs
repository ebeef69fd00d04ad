//! The schedule of failures, drawn from a seed.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::Signal;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use tokio::time::{Instant, sleep};

use super::{
    LEASE, Outcome, Run, STALL, Scenario,
    clients::{self, Clients, REST},
    cluster::{Cluster, REMOVABLE, SERVERS},
};
use crate::harness::database;

/// Runs scenarios until the end of the run.
pub async fn play(cluster: &mut Cluster, clients: &Clients, run: &Run, random: &mut StdRng, outcome: &mut Outcome) {
    let until = Instant::now() + run.lasts;
    let mut scenarios: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut first = run.first.iter().copied();
    let mut reported = Instant::now();
    loop {
        let scenario = match first.next() {
            Some(scenario) => scenario,
            None if Instant::now() >= until => break,
            None => *Scenario::ALL.choose_weighted(random, |scenario| scenario.weight()).expect("there are some"),
        };
        *scenarios.entry(scenario.name()).or_default() += 1;
        outcome.kills += perform(scenario, cluster, clients, random, outcome).await;
        // Restarts processes that exited because the database was unavailable when they started.
        for member in &mut cluster.members {
            member.start();
        }
        sleep(Duration::from_millis(random.random_range(200..2_500))).await;
        if reported.elapsed() > Duration::from_secs(60) {
            reported = Instant::now();
            println!("{} calls acknowledged, {} processes killed", clients.shared.ledger.count(), outcome.kills);
        }
    }
    outcome.scenarios = scenarios.into_iter().collect();
    outcome.unavailable = clients.shared.unavailable.load(Ordering::Relaxed);
}

/// Returns a random duration from a range of milliseconds.
fn millis(random: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

/// Runs one scenario. Returns the number of processes killed.
async fn perform(
    scenario: Scenario,
    cluster: &mut Cluster,
    clients: &Clients,
    random: &mut StdRng,
    outcome: &mut Outcome,
) -> usize {
    let mut kills = 0;
    match scenario {
        Scenario::CrashRecovery | Scenario::ServerKill | Scenario::RepeatedKills => {
            kills += kill_some(scenario, cluster, random).await;
        }
        Scenario::LeaderFailover => {
            let leader = leader(cluster).await;
            let is = |text: &str| cluster.members.iter().position(|member| member.has_logged(text));
            if let Some(index) = leader.and_then(|id| is(&format!("elected leader id={id}"))) {
                let member = &mut cluster.members[index];
                kills += usize::from(member.kill());
                sleep(millis(random, 100..5_000)).await;
                member.start();
            }
        }
        Scenario::RemovalRace => {
            let removed = clients::race_removal(&clients.shared).await;
            outcome
                .notes
                .push(format!("an image was removed {removed} times while it was requested, and registered again"));
        }
        Scenario::RegionTakenOut => kills += take_region_out(cluster, outcome).await,
        Scenario::Starvation => {
            let took = clients::starve(&clients.shared, 30).await;
            outcome.notes.push(format!("with 30 images pending for a region with two concurrent copies, another region had its image after {took:?}"));
        }
        Scenario::Paused => {
            let members = cluster.members.len();
            let member = &cluster.members[random.random_range(0..members)];
            member.signal(Signal::STOP);
            sleep(LEASE + millis(random, 500..3_000)).await;
            member.signal(Signal::CONT);
        }
        Scenario::RetryStorm | Scenario::SilentStore | Scenario::FrozenDisk => {
            disturb_store(scenario, cluster, random).await;
        }
        _ => disturb_database(scenario, cluster, clients, random).await,
    }
    kills
}

/// Kills and restarts a process, once or several times. Returns the number of kills.
async fn kill_some(scenario: Scenario, cluster: &mut Cluster, random: &mut StdRng) -> usize {
    let members = match scenario {
        Scenario::ServerKill => 0..SERVERS,
        Scenario::CrashRecovery => SERVERS..cluster.members.len(),
        _ => 0..cluster.members.len(),
    };
    let member = &mut cluster.members[random.random_range(members)];
    let (times, away, again) =
        if scenario == Scenario::RepeatedKills { (4, 0..1, 100..1_200) } else { (1, 100..2_000, 0..1) };
    let mut kills = 0;
    for _ in 0..times {
        kills += usize::from(member.kill());
        sleep(Duration::from_millis(random.random_range(away.clone()))).await;
        member.start();
        sleep(Duration::from_millis(random.random_range(again.clone()))).await;
    }
    kills
}

/// Makes a region's store unavailable and removes the region from the configuration. Restores both once the region's
/// pending copies have been suspended. Returns the number of processes killed.
async fn take_region_out(cluster: &mut Cluster, outcome: &mut Outcome) -> usize {
    let (store, away) = (cluster.site.region(REMOVABLE), cluster.site.region("away"));
    std::fs::rename(&store, &away).expect("the store is moved");
    sleep(LEASE).await;
    let mut kills = cluster.configure_removable_region(false);
    let suspended = format!("region is not configured any more; its copies are suspended region={REMOVABLE}");
    let since = Instant::now();
    // Waits for a limited time, because the leader logs nothing if there are no copies to suspend.
    while !cluster.has_logged(&suspended) && since.elapsed() < Duration::from_secs(15) {
        sleep(Duration::from_millis(200)).await;
    }
    outcome.notes.push(format!("a region was removed for {:?}", since.elapsed()));
    std::fs::rename(&away, &store).expect("the store is moved back");
    kills += cluster.configure_removable_region(true);
    kills
}

/// Makes a store unavailable for a while.
async fn disturb_store(scenario: Scenario, cluster: &mut Cluster, random: &mut StdRng) {
    match scenario {
        Scenario::RetryStorm => {
            let registry = random.random_range(0..cluster.registries.len());
            cluster.registries[registry].stop();
            sleep(millis(random, 2_000..6_000)).await;
            cluster.registries[registry].restart().await;
        }
        Scenario::SilentStore => {
            let registry = &cluster.registries[random.random_range(0..cluster.registries.len())];
            registry.signal(Signal::STOP);
            // The pause exceeds the stall timeout.
            sleep(STALL + millis(random, 500..4_000)).await;
            registry.signal(Signal::CONT);
        }
        Scenario::FrozenDisk => {
            if let Some(disk) = &cluster.disk {
                disk.freeze();
                sleep(STALL + millis(random, 500..4_000)).await;
                disk.thaw();
            }
        }
        _ => {}
    }
}

/// Restarts the database, cuts its connections, changes its clock, or puts load on it.
async fn disturb_database(scenario: Scenario, cluster: &mut Cluster, clients: &Clients, random: &mut StdRng) {
    match scenario {
        Scenario::PostgresRestart => {
            cluster.database.stop(if random.random_bool(0.5) { "fast" } else { "immediate" });
            sleep(millis(random, 100..4_000)).await;
            cluster.database.resume();
        }
        Scenario::BackendKill => {
            for _ in 0..5 {
                if let Some(admin) = admin(cluster).await {
                    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                WHERE application_name = 'appferry' AND random() < 0.5";
                    let _ = admin.execute_unprepared(kill).await;
                }
                sleep(millis(random, 50..500)).await;
            }
        }
        Scenario::PoolExhaustion => {
            let others = take_connections(cluster).await;
            sleep(millis(random, 1_000..5_000)).await;
            drop(others);
        }
        Scenario::ClockStep => {
            let minutes = *[-60, -5, 0, 5, 60].choose(random).expect("there are some");
            cluster.database.set_clock(minutes * 60);
            sleep(LEASE + millis(random, 500..3_000)).await;
        }
        Scenario::ConnectionCuts => {
            for _ in 0..3 {
                cluster.tcp_proxy.cut();
                sleep(millis(random, 50..800)).await;
            }
        }
        Scenario::IdleTransaction => {
            if let Some(admin) = admin(cluster).await {
                let open = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM replica";
                let _ = admin.execute_unprepared(open).await;
                sleep(millis(random, 5_000..15_000)).await;
                let _ = admin.execute_unprepared("ROLLBACK").await;
            }
        }
        Scenario::SustainedOverload => {
            clients.shared.rest.store(10, Ordering::Relaxed);
            sleep(millis(random, 5_000..10_000)).await;
            clients.shared.rest.store(REST, Ordering::Relaxed);
        }
        Scenario::ActiveReaders => {
            let readers: Vec<_> = (0..4).map(|_| tokio::spawn(clients::read(Arc::clone(&clients.shared)))).collect();
            if let Some(admin) = admin(cluster).await {
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

async fn admin(cluster: &Cluster) -> Option<DatabaseConnection> {
    let mut options = sea_orm::ConnectOptions::new(cluster.url());
    options.max_connections(1).connect_timeout(Duration::from_secs(2)).sqlx_logging(false);
    sea_orm::Database::connect(options).await.ok()
}

/// Returns the holder of the leader lease.
async fn leader(cluster: &Cluster) -> Option<String> {
    let db = database::look(&cluster.url()).await;
    let ask = "SELECT holder FROM leader_lease WHERE expires_at > 0".to_owned();
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, ask)).await.ok()??;
    row.try_get("", "holder").ok()
}

/// Takes every free connection of the database.
async fn take_connections(cluster: &Cluster) -> Vec<DatabaseConnection> {
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'appferry'";
    let Some(killer) = admin(cluster).await else { return Vec::new() };
    let mut taken = vec![];
    for _ in 0..110 {
        let _ = killer.execute_unprepared(kill).await;
        match admin(cluster).await {
            Some(connection) => taken.push(connection),
            None => break,
        }
    }
    taken.push(killer);
    taken
}
