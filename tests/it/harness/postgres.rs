//! A PostgreSQL server for a single test. The test may stop, freeze, crash and promote it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{address::free_address, missing};

/// A PostgreSQL server. Its directory is removed when this value is dropped.
#[derive(Debug)]
pub struct Postgres {
    directory: tempfile::TempDir,
    port: u16,
    options: String,
    /// The file from which libfaketime reads the server's clock, if the clock can be set.
    clock: Option<PathBuf>,
}

/// The message that is printed once if the server is not installed.
const SERVER: &str = "skipped the tests that start their own PostgreSQL; to run them, install it: source scripts/tools";

/// Returns whether the server is installed. A test that starts one returns early otherwise.
///
/// # Panics
///
/// Panics if it is not installed and `CI` is set.
pub fn is_installed() -> bool {
    find_programs().is_some() || missing(SERVER)
}

/// Returns the directory of the server's programs.
pub fn programs() -> PathBuf {
    find_programs().expect("PostgreSQL is installed: source scripts/tools")
}

fn find_programs() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output();
    let directory = output.ok().map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let has = |path: &PathBuf| path.join("initdb").exists();
    directory.filter(has).or_else(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        versions.filter_map(|version| Some(version.ok()?.path().join("bin"))).filter(has).max()
    })
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Returns a command that runs a program of the server as an unprivileged user, because the server refuses to run as
/// root.
fn program(name: &str) -> Command {
    let mut command = as_the_server("env");
    command.arg(programs().join(name));
    command
}

fn as_the_server(program: &str) -> Command {
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", program]);
        command
    } else {
        Command::new(program)
    }
}

/// Returns the path of libfaketime, a library that replaces the clock of a program.
fn faketime() -> PathBuf {
    let roots = ["/usr/lib", "/usr/local/lib"].map(fs::read_dir).into_iter().flatten().flatten().flatten();
    let paths = roots.flat_map(|root| [root.path(), root.path().join("faketime")]);
    paths
        .chain(["/usr/lib/faketime".into()])
        .flat_map(|path| [path.join("libfaketime.so.1"), path.join("faketime/libfaketime.so.1")])
        .find(|path| path.exists())
        .expect("libfaketime is installed")
}

fn done(what: &str, output: &Output) {
    assert!(output.status.success(), "{what}: {output:?}");
}

impl Postgres {
    /// Starts a server with these settings, on a free port.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::create(settings, false)
    }

    /// Starts a server whose clock can be set.
    pub fn with_clock(settings: &[(&str, &str)]) -> Self {
        Self::create(settings, true)
    }

    fn create(settings: &[(&str, &str)], has_clock: bool) -> Self {
        let directory = tempfile::Builder::new().prefix("appferry-postgres-").tempdir().expect("a directory");
        give_away(directory.path());
        let mut initdb = program("initdb");
        initdb.arg("--pgdata").arg(directory.path().join("data"));
        initdb.args(["--username=appferry", "--auth=trust", "--no-instructions"]).current_dir(directory.path());
        done("initdb", &initdb.output().expect("initdb runs"));
        let port = free_address().port();
        let options: Vec<String> = settings.iter().map(|(name, value)| format!(" -c {name}={value}")).collect();
        let options = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200{}",
            options.concat()
        );
        let clock = has_clock.then(|| directory.path().join("clock"));
        let server = Self { directory, port, options, clock };
        server.set_clock(0);
        server.resume();
        server
    }

    /// Starts a standby of another server, which rejects writes.
    pub fn following(primary: &Self) -> Self {
        let directory = tempfile::Builder::new().prefix("appferry-postgres-").tempdir().expect("a directory");
        give_away(directory.path());
        let mut copy = program("pg_basebackup");
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--username=appferry", "--host=127.0.0.1"]);
        copy.arg(format!("--port={}", primary.port)).arg("--pgdata").arg(directory.path().join("data"));
        done("pg_basebackup", &copy.current_dir(directory.path()).output().expect("pg_basebackup runs"));
        let port = free_address().port();
        let options = primary.options.replace(&format!("-p {}", primary.port), &format!("-p {port}"));
        let server = Self { directory, port, options, clock: None };
        server.resume();
        server
    }

    /// Sets the server's clock to this offset from the machine's clock, in seconds. Does nothing unless
    /// [`Self::with_clock`] started the server.
    pub fn set_clock(&self, seconds: i64) {
        let Some(clock) = &self.clock else { return };
        // Replaces the file atomically, because the server may read it at any moment.
        let next = clock.with_extension("next");
        fs::write(&next, format!("{seconds:+}")).expect("it is written");
        fs::rename(next, clock).expect("it is put in place");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL of a database on this server.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://appferry@127.0.0.1:{}/{database}", self.port)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Output {
        let mut pg_ctl = as_the_server("env");
        if let Some(clock) = &self.clock {
            // Preloads libfaketime only after the change of user, because it creates a shared resource that belongs to
            // the first user.
            pg_ctl.arg(format!("LD_PRELOAD={}", faketime().display()));
            pg_ctl.arg(format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()));
            pg_ctl.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
        }
        pg_ctl.arg(programs().join("pg_ctl")).args(arguments).arg("--pgdata").arg(self.data());
        pg_ctl.current_dir(self.directory.path());
        pg_ctl.output().expect("pg_ctl runs")
    }

    /// Restarts the server.
    pub fn resume(&self) {
        let log = self.directory.path().join("log");
        let log = format!("--log={}", log.display());
        let options = format!("--options={}", self.options);
        done("pg_ctl start", &self.pg_ctl(&["start", "--wait", "--silent", &log, &options]));
    }

    /// Stops the server. The mode `fast` terminates its sessions; the mode `immediate` is like a crash.
    pub fn stop(&self, mode: &str) {
        done("pg_ctl stop", &self.pg_ctl(&["stop", "--wait", "--silent", &format!("--mode={mode}")]));
    }

    /// Promotes a standby.
    pub fn promote(&self) {
        done("pg_ctl promote", &self.pg_ctl(&["promote", "--wait"]));
    }

    /// Returns the id of the postmaster process.
    pub fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).expect("it runs");
        text.lines().next().expect("a line").trim().parse().expect("a number")
    }
}

/// Processes that are stopped until this value is dropped.
#[derive(Debug)]
pub struct Frozen(Vec<Pid>);

impl Postgres {
    /// Stops the server and all its sessions with SIGSTOP: connections stay open, but the server does not respond.
    pub fn freeze(&self) -> Frozen {
        let parent = self.pid();
        // The fourth field of `stat` is the parent's id. Skips the name, the second field, which may contain spaces.
        let child = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().nth(1).unwrap_or_default());
            fields.is_some_and(|parent_of| parent_of == parent.to_string())
        };
        let all = fs::read_dir("/proc")
            .expect("processes")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let pids: Vec<Pid> = [parent].into_iter().chain(all.filter(child)).filter_map(Pid::from_raw).collect();
        for pid in &pids {
            // A session may have ended since it was listed.
            let _ = kill_process(*pid, Signal::STOP);
        }
        Frozen(pids)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.pg_ctl(&["stop", "--silent", "--mode=immediate"]);
    }
}

/// Gives a directory to the server's user.
fn give_away(directory: &Path) {
    if is_root() {
        done("chown", &Command::new("chown").arg("postgres:").arg(directory).output().expect("chown runs"));
    }
}
