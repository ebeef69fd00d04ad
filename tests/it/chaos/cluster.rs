//! The processes of a run: servers, workers, a database behind a TCP proxy, and registries.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{LEASE, STALL};
use crate::harness::{
    address::free_address,
    disk::FreezableDisk,
    postgres::Postgres,
    process::{self, command},
    registry::Registry,
    site::{HOME, Site},
    tcp_proxy::TcpProxy,
    until,
};

/// A region with a low limit of concurrent copies.
pub const NARROW: &str = "cn-shenzhen";

/// The region whose disk can be frozen.
pub const DISK: &str = "cn-beijing";

/// The region that is removed from the configuration and restored. Calls that name no regions include it.
pub const REMOVABLE: &str = "cn-chengdu";

/// One process of the service.
#[derive(Debug)]
pub struct Member {
    role: &'static str,
    /// The address of a server; `None` for a worker.
    pub address: Option<SocketAddr>,
    child: Option<Child>,
    log: PathBuf,
    config: PathBuf,
}

impl Member {
    /// Starts the process unless it is running. It may have exited by itself while the database was unavailable.
    pub fn start(&mut self) {
        let running = self.child.as_mut().is_some_and(|child| child.try_wait().expect("a child").is_none());
        if running {
            return;
        }
        let directory = self.config.parent().expect("a directory");
        let mut command = command(directory, &[self.role, "--config", self.config.to_str().expect("text")]);
        if let Some(address) = self.address {
            command.env("APPFERRY_SERVER__LISTEN", address.to_string());
        }
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("the program starts"));
    }

    /// Kills the process. Returns whether it ran.
    pub fn kill(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let ran = child.try_wait().expect("a child").is_none();
        let _ = child.kill();
        let _ = child.wait();
        ran
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("an id")).expect("an id");
            let _ = kill_process(pid, signal);
        }
    }

    /// Returns the last `lines` lines of the process's log that contain `text`.
    fn last_logged(&self, text: &str, lines: usize) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let name = self.log.file_name().unwrap_or_default().to_string_lossy();
        let found: Vec<&str> = log.lines().filter(|line| line.contains(text)).collect();
        found.iter().skip(found.len().saturating_sub(lines)).map(|line| format!("{name}: {line}")).collect()
    }

    /// Returns whether the process's log contains `text`.
    pub fn has_logged(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).unwrap_or_default().contains(text)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.kill();
    }
}

/// The processes, the database and the stores of a run.
#[derive(Debug)]
pub struct Cluster {
    pub site: Site,
    pub database: Postgres,
    pub tcp_proxy: TcpProxy,
    pub registries: Vec<Registry>,
    /// The freezable disk of one region, if this process may mount one.
    pub disk: Option<FreezableDisk>,
    /// The processes, servers first.
    pub members: Vec<Member>,
}

pub const SERVERS: usize = 3;
const WORKERS: usize = 3;

/// Configures the interval of the leader's maintenance. A region that no process has configured for twelve intervals is
/// suspended.
const HOUSEKEEPING: &str = "[housekeeping]\ninterval_ms = 500\n";

fn removable_region(site: &Site) -> String {
    format!("[[region]]\nid = \"{REMOVABLE}\"\nstore = \"dir://{}\"\n", site.region(REMOVABLE).display())
}

impl Cluster {
    pub async fn start() -> Self {
        let database = Postgres::with_clock(&[("max_connections", "110")]);
        let tcp_proxy = TcpProxy::start(database.port()).await;
        let registries = vec![Registry::start().await, Registry::start().await];
        let url = format!("postgres://appferry@{}/postgres", tcp_proxy.address);
        let disk = FreezableDisk::new();
        let mut site = Site::new().on(&url).with("cn-shanghai", registries[0].store("apps"), "").with(
            NARROW,
            registries[1].store("apps"),
            "ingress_copies = 2",
        );
        site.server = String::from("max_in_flight = 256\nshutdown_seconds = 5");
        site.database = String::from("timeout_ms = 2000");
        // Allows enough attempts to retry until an unavailable store is back.
        site.worker = format!(
            "lease_ms = {}\nstall_ms = {}\nheartbeat_ms = 300\npoll_ms = 500\nconcurrency = 8\nattempts = 100000\nretry_first_ms = 300\n\
             retry_longest_ms = 3000",
            LEASE.as_millis(),
            STALL.as_millis()
        );
        if let Some(disk) = &disk {
            site = site.with(DISK, format!("dir://{}", disk.path().display()), "");
        }
        site.more = HOUSEKEEPING.to_owned() + &removable_region(&site);
        std::fs::create_dir(site.region(REMOVABLE)).expect("a directory");
        let config = site.write_config();
        process::migrate(&config);
        let member = |role: &'static str, number: usize, address: Option<SocketAddr>| Member {
            role,
            address,
            child: None,
            log: site.directory.path().join(format!("{role}-{number}.log")),
            config: config.clone(),
        };
        let servers = (0..SERVERS).map(|number| member("serve", number, Some(free_address())));
        let members: Vec<Member> = servers.chain((0..WORKERS).map(|number| member("worker", number, None))).collect();
        let mut cluster = Self { site, database, tcp_proxy, registries, disk, members };
        cluster.heal().await;
        cluster
    }

    pub fn directory(&self) -> &Path {
        self.site.directory.path()
    }

    /// Returns the URL of the database, bypassing the proxy.
    pub fn url(&self) -> String {
        self.database.url("postgres")
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().filter_map(|member| member.address).collect()
    }

    pub fn home(&self) -> PathBuf {
        self.site.region(HOME)
    }

    /// Returns the path of an image's layout in a region.
    pub fn layout(&self, region: &str, image: &str) -> PathBuf {
        match &self.disk {
            Some(disk) if region == DISK => disk.path().join(image),
            _ => self.site.image(region, image),
        }
    }

    /// Adds the removable region to the configuration or removes it, and restarts every process. Returns the number of
    /// processes killed.
    pub fn configure_removable_region(&mut self, is_in: bool) -> usize {
        let region = if is_in { removable_region(&self.site) } else { String::new() };
        self.site.more = HOUSEKEEPING.to_owned() + &region;
        self.site.write_config();
        let killed = self.members.iter_mut().map(|member| {
            let killed = member.kill();
            member.start();
            usize::from(killed)
        });
        killed.sum()
    }

    /// Returns whether the log of any process contains `text`.
    pub fn has_logged(&self, text: &str) -> bool {
        self.members.iter().any(|member| member.has_logged(text))
    }

    /// Returns the last `lines` lines of each process's log that contain `text`.
    pub fn last_logged(&self, text: &str, lines: usize) -> Vec<String> {
        self.members.iter().flat_map(|member| member.last_logged(text, lines)).collect()
    }

    /// Restarts every process that does not run, and waits until all servers listen.
    pub async fn heal(&mut self) {
        let members = &mut self.members;
        until("the service", async || {
            let mut all = true;
            for member in members.iter_mut() {
                member.signal(Signal::CONT);
                member.start();
                if let Some(address) = member.address {
                    all &= tokio::net::TcpStream::connect(address).await.is_ok();
                }
            }
            if !all {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            all.then_some(())
        })
        .await;
    }
}
