//! Database outages: calls are answered in time with the contract's errors, the service reports that it is not ready,
//! workers wait and continue, and no acknowledged call is lost.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use appferry::{
    app::Role,
    contract::v1::{RegionState, SynchronizationState},
};
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::ConnectionTrait as _;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    address::free_address,
    database::{self, Kind, fresh},
    history,
    images::{self, noise},
    postgres::{self, Postgres},
    process::Served,
    refusal,
    site::{HOME, LEASE, Running, Site, ask},
    tcp_proxy::TcpProxy,
    until,
};

/// Upper bound for any response while the database does not respond.
const SOON: Duration = Duration::from_secs(8);

/// Starts a service with the database at `url`, and registers an image.
async fn on(url: &str, connections: u32) -> Running {
    let mut site = Site::new().on(url);
    site.more = String::from("[housekeeping]\ninterval_ms = 200\n");
    site.database = format!("timeout_ms = 2000\nconnections = {connections}");
    let running = site.start().await;
    running.add("a", &[noise(10_000, 1)]).await;
    running
}

async fn ready(running: &Running) -> bool {
    let mut client = HealthClient::new(running.channel().await);
    let answer = client.check(HealthCheckRequest { service: String::new() }).await.expect("health always answers");
    answer.into_inner().status() == tonic_health::pb::health_check_response::ServingStatus::Serving
}

async fn becomes_ready(running: &Running, wanted: bool) {
    until("readiness", async || (ready(running).await == wanted).then_some(())).await;
}

/// Asserts that a call fails in time with UNAVAILABLE and a retry delay.
async fn is_unavailable(running: &Running) {
    let started = Instant::now();
    let status = running.synchronize("a", &[]).await.expect_err("the database is away");
    let refused = refusal::read(&status);
    refused.is(Code::Unavailable, "ServiceUnavailable", 503);
    assert_eq!(refused.retry_after, Some(1.0));
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

/// Asserts that calls succeed again, and that every acknowledged synchronization succeeds.
async fn works_again(running: &Running, acknowledged: &[String]) {
    becomes_ready(running, true).await;
    let id = until("an accepted call", async || running.synchronize("a", &[]).await.ok()).await;
    for id in acknowledged.iter().chain([&id]) {
        let done = running.finished(id).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_is_waited_for() {
    if !postgres::is_installed() {
        return;
    }
    let server = Postgres::start(&[]);
    let running = on(&server.url("postgres"), 4).await;
    for mode in ["fast", "immediate"] {
        let app = running.add(&format!("image-{mode}"), &[noise(300_000, 2)]).await;
        let id = running.synchronize(&app, &[]).await.expect("it is accepted");
        server.stop(mode);
        is_unavailable(&running).await;
        becomes_ready(&running, false).await;
        server.resume();
        works_again(&running, &[id]).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_holds_nobody() {
    if !postgres::is_installed() {
        return;
    }
    let server = Postgres::start(&[]);
    let tcp_proxy = TcpProxy::start(server.port()).await;
    let url = format!("postgres://appferry@{}/postgres", tcp_proxy.address);
    let running = on(&url, 4).await;
    let id = running.synchronize("a", &["cn-beijing"]).await.expect("it is accepted");
    running.finished(&id).await;
    // While all processes of the server are stopped, connections stay open, and nothing responds.
    let processes = |signal| {
        let children = Command::new("pgrep").args(["-P", &server.pid().to_string()]).output().expect("pgrep runs");
        let children = String::from_utf8_lossy(&children.stdout).lines().filter_map(|line| line.parse().ok()).collect();
        for pid in std::iter::once(server.pid()).chain::<Vec<i32>>(children) {
            let _ = kill_process(Pid::from_raw(pid).expect("a process"), signal);
        }
    };
    processes(Signal::STOP);
    is_unavailable(&running).await;
    becomes_ready(&running, false).await;
    processes(Signal::CONT);
    works_again(&running, &[id]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_connections_are_used_up_is_waited_for() {
    if !postgres::is_installed() {
        return;
    }
    let server = Postgres::start(&[("max_connections", "30")]);
    let running = on(&server.url("postgres"), 2).await;
    let admin = database::look(&server.url("postgres")).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'appferry'";
    // Ends the connections of the service and lets other clients take the slots, until the service has none left.
    let mut others = Vec::new();
    until("the other sessions to take every connection", async || {
        admin.execute_unprepared(kill).await.expect("they are cut off");
        let mut options = sea_orm::ConnectOptions::new(server.url("postgres"));
        options.max_connections(1).connect_timeout(Duration::from_secs(1)).sqlx_logging(false);
        while let Ok(other) = sea_orm::Database::connect(options.clone()).await {
            others.push(other);
        }
        let left = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'appferry'";
        let left = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, left);
        admin.query_one_raw(left).await.expect("it is answered").is_none().then_some(())
    })
    .await;
    is_unavailable(&running).await;
    becomes_ready(&running, false).await;
    for other in others {
        other.close().await.expect("it is closed");
    }
    works_again(&running, &[]).await;
    running.stop().await;
}

/// An administrator repeatedly terminates sessions while clients make calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_cut_off_lose_nothing() {
    if !postgres::is_installed() {
        return;
    }
    let server = Postgres::start(&[]);
    let url = server.url("postgres");
    let running = on(&url, 4).await;
    history::record(&url).await;
    let mut acknowledged = Vec::new();
    let admin = database::look(&url).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'appferry'";
    for round in 0..20 {
        let app = running.add(&format!("image-{round}"), &[noise(2_000, round)]).await;
        let mut calls = JoinSet::new();
        for _ in 0..8 {
            let (mut client, app) = (running.app_sync().await, app.clone());
            calls.spawn(async move { client.synchronize_app(ask(&app, &[])).await });
        }
        admin.execute_unprepared(kill).await.expect("they are cut off");
        for answer in calls.join_all().await {
            match answer {
                Ok(accepted) => acknowledged.push(accepted.into_inner().request_id),
                Err(status) => drop(refusal::read(&status).is(Code::Unavailable, "ServiceUnavailable", 503)),
            }
        }
        until("the service", async || running.synchronize("a", &[]).await.ok()).await;
    }
    assert!(!acknowledged.is_empty());
    works_again(&running, &acknowledged).await;
    running.stop().await;
    println!("{:?}", history::replay(&url, &[LEASE]).await);
}

/// Failover: the primary becomes a read-only standby and another server is promoted; existing connections lead to the
/// wrong one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_followed() {
    if !postgres::is_installed() {
        return;
    }
    let primary = Postgres::start(&[("wal_level", "replica"), ("max_wal_senders", "4")]);
    let tcp_proxy = TcpProxy::start(primary.port()).await;
    let running = on(&format!("postgres://appferry@{}/postgres", tcp_proxy.address), 4).await;
    let follower = Postgres::following(&primary);
    let id = running.synchronize("a", &["cn-beijing"]).await.expect("it is accepted");
    running.finished(&id).await;
    let looks = database::look(&follower.url("postgres")).await;
    until("replication", async || {
        let ask = "SELECT 1 FROM synchronization WHERE state = 'SUCCEEDED'".to_owned();
        let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, ask);
        looks.query_one_raw(statement).await.expect("it answers")
    })
    .await;

    // The service is now connected to the standby. It reports that it is not ready, because the standby is read-only.
    tcp_proxy.set_upstream(follower.port());
    tcp_proxy.cut();
    is_unavailable(&running).await;
    becomes_ready(&running, false).await;
    follower.promote();
    works_again(&running, &[id]).await;

    // Another failover, which cuts no connections: the service itself closes those that lead to the wrong server.
    let back = Postgres::following(&follower);
    looks.execute_unprepared("ALTER SYSTEM SET default_transaction_read_only = on").await.expect("it is set");
    back.promote();
    let elsewhere = database::look(&back.url("postgres")).await;
    elsewhere.execute_unprepared("ALTER SYSTEM RESET default_transaction_read_only").await.expect("it is reset");
    elsewhere.execute_unprepared("SELECT pg_reload_conf()").await.expect("it is read");
    tcp_proxy.set_upstream(back.port());
    looks.execute_unprepared("SELECT pg_reload_conf()").await.expect("it is read");
    works_again(&running, &[]).await;
    running.stop().await;
}

/// A database server on a small disk that a test can fill.
struct Small {
    server: Child,
    port: u16,
    directories: [tempfile::TempDir; 2],
}

impl Small {
    /// Starts a server whose disk has little free space, in its own mount namespace. Its log is elsewhere: without
    /// space for the log, the server would crash and free space.
    async fn start(room: &str) -> Self {
        let new = || tempfile::Builder::new().prefix("appferry-small-").tempdir().expect("a directory");
        let (directory, log) = (new(), new());
        let port = free_address().port();
        let script = format!(
            "mount -t tmpfs -o size={room},mode=0777 none {dir} && cd {dir} && \
             AS=\"setpriv --reuid=postgres --regid=postgres --clear-groups\"; [ \"$(id -u postgres)\" ] || exit 1; \
             chown postgres {log} && chmod 711 {log} && $AS {bin}/initdb --pgdata=data --waldir={log}/wal --username=appferry --auth=trust --no-sync --wal-segsize=1 >/dev/null && \
             exec $AS {bin}/postgres -D data -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
             -c max_wal_size=4MB -c min_wal_size=2MB -c shared_buffers=8MB -c autovacuum=off",
            dir = directory.path().display(),
            log = log.path().display(),
            bin = postgres::programs().display(),
        );
        let server = Command::new("unshare").args(["--mount", "sh", "-c", &script]).spawn().expect("unshare runs");
        let url = format!("postgres://appferry@127.0.0.1:{port}/postgres");
        until("the server", async || {
            let mut options = sea_orm::ConnectOptions::new(&url);
            options.max_connections(1).connect_timeout(Duration::from_secs(1)).sqlx_logging(false);
            sea_orm::Database::connect(options).await.ok()
        })
        .await;
        Self { server, port, directories: [directory, log] }
    }
}

impl Small {
    /// Returns the path of another file on the server's disk, through the server's mount namespace.
    fn other(&self) -> std::path::PathBuf {
        let directory = self.directories[0].path().display();
        format!("/proc/{}/root{directory}/other", self.server.id()).into()
    }

    /// Fills the disk with another file.
    fn fill(&self) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(self.other()).expect("a file");
        let more = [7; 4_096];
        while std::io::Write::write_all(&mut file, &more).is_ok() {}
    }

    /// Removes the file that filled the disk.
    fn empty(&self) {
        std::fs::remove_file(self.other()).expect("it is there");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_is_told_and_waited_for() {
    if !postgres::is_installed() {
        return;
    }
    let small = Small::start("80m").await;
    let url = format!("postgres://appferry@127.0.0.1:{}/postgres", small.port);
    let running = on(&url, 4).await;
    let first = running.synchronize("a", &["cn-beijing"]).await.expect("it is accepted");
    running.finished(&first).await;
    // Another program fills the disk.
    small.fill();
    until("a call that fails for lack of disk space", async || {
        // Fills the disk again, because the server may have freed space.
        small.fill();
        let status = running.synchronize("a", &[]).await.err()?;
        let refused = refusal::read(&status);
        let result = (refused.code, refused.reason.as_str());
        assert!(
            [(Code::Unavailable, "ServiceUnavailable"), (Code::Internal, "DbError")].contains(&result),
            "{refused:?}"
        );
        Some(())
    })
    .await;
    small.empty();
    works_again(&running, &[first]).await;
    running.stop().await;
}

/// A worker is paused during a copy for longer than its lease, and continues when another worker has finished.
async fn a_worker_that_was_stopped_changes_nothing(kind: Kind) {
    if !kind.is_available() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let url = fresh(kind, directory.path()).await;
    history::record(&url).await;
    let mut site = Site::new().on(&url).with("cn-beijing", String::new(), "ingress_bytes_per_second = 400000");
    site.stores.clear();
    site.worker = String::from("heartbeat_ms = 100\nlease_ms = 1000\npoll_ms = 100");
    let config = site.write_config();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(1_200_000, 1), noise(1_000, 2)]).await;
    let first = Served::worker(&config, running.site.directory.path().join("first.log")).await;
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    until("the end of the copy", async || {
        let region = running.get(&id).await.regions.remove(0);
        (region.state() == RegionState::Copying && region.bytes_copied > 0).then_some(())
    })
    .await;
    first.signal(Signal::STOP);
    let second = Served::worker(&config, running.site.directory.path().join("second.log")).await;
    let done = running.finished(&id).await;
    assert_eq!((done.state(), done.regions[0].attempt), (SynchronizationState::Succeeded, 2), "{done:?}");
    let root = images::verify(&running.site.image(HOME, &app));
    let layout = running.site.image("cn-beijing", &app);
    assert_eq!(images::verify(&layout), root);
    let db = database::look(&url).await;
    let row = async || {
        let ask = "SELECT count(*) AS n FROM history WHERE image_id = 'a'".to_owned();
        let row = db.query_one_raw(sea_orm::Statement::from_string(db.get_database_backend(), ask)).await;
        row.expect("it answers").expect("a row").try_get::<i64>("", "n").expect("a number")
    };
    let changes = row().await;
    first.signal(Signal::CONT);
    until("the first worker to poll", async || {
        let log = first.logged();
        (log.contains("was canceled or taken over") || log.contains("report rejected")).then_some(())
    })
    .await;
    // The first worker has polled since it continued, and has found no work.
    let again = running.add("b", &[noise(1_000, 3)]).await;
    let next = running.synchronize(&again, &["cn-shanghai"]).await.expect("it is accepted");
    running.finished(&next).await;
    assert_eq!(row().await, changes, "nothing of the first image has changed");
    assert_eq!(running.get(&id).await, done);
    assert_eq!(images::verify(&layout), root);
    drop((first, second));
    running.stop().await;
    println!("{:?}", history::replay(&url, &[Duration::from_secs(1)]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_stopped_changes_nothing_on_postgres() {
    a_worker_that_was_stopped_changes_nothing(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_stopped_changes_nothing_on_mysql() {
    a_worker_that_was_stopped_changes_nothing(Kind::MySql).await;
}
