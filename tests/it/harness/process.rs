//! The `appferry` program in processes of its own.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{until, until_up};

/// Path of the `appferry` program that was built with the tests.
pub const APPFERRY: &str = env!("CARGO_BIN_EXE_appferry");

/// Returns a command that runs the program in a directory, without environment variables that affect it.
pub fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(APPFERRY);
    clean(&mut command).args(arguments).current_dir(directory).stdin(Stdio::null());
    command
}

/// Removes the environment variables that affect the program from a command.
pub fn clean(command: &mut Command) -> &mut Command {
    let ours = |name: &str| ["APPFERRY_", "OTEL_", "RUST_LOG"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
}

/// Runs the program in a directory, waits until it exits, and returns its output.
pub fn run(directory: &Path, arguments: &[&str]) -> Output {
    command(directory, arguments).output().expect("the program runs")
}

/// Migrates the database that a configuration file names.
///
/// # Panics
///
/// Panics if `appferry migrate` fails.
pub fn migrate(config: &Path) {
    let path = config.to_str().expect("text");
    stdout(&run(config.parent().expect("a directory"), &["migrate", "--config", path]));
}

/// Returns the standard output of a command, and asserts that the command succeeded.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A service in its own process. Killed when dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    pub address: SocketAddr,
    pub log: PathBuf,
}

impl Served {
    /// Starts `appferry serve` and waits until it listens.
    pub async fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("a log");
        let mut child = command.stdout(Stdio::null()).stderr(file).spawn().expect("the program starts");
        let address = until_up("the service", &mut child, &log, async || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let line = text.lines().find(|line| line.contains("serving"))?;
            let (_, rest) = line.split_once("address=").or_else(|| line.split_once("\"address\":\""))?;
            rest.split([' ', '"']).next()?.trim().parse().ok()
        })
        .await;
        Self { child, address, log }
    }

    /// Starts `appferry worker` with a configuration file, and waits until it runs.
    pub async fn worker(config: &Path, log: PathBuf) -> Worker {
        let directory = config.parent().expect("a directory");
        let path = config.to_str().expect("text");
        let file = File::create(&log).expect("a log");
        let mut command = command(directory, &["worker", "--config", path]);
        let mut child = command.stdout(Stdio::null()).stderr(file).spawn().expect("the program starts");
        let works = async || std::fs::read_to_string(&log).ok()?.contains("worker started").then_some(());
        until_up("the worker", &mut child, &log, works).await;
        Worker { child, log }
    }

    /// Starts a service with a configuration file.
    pub async fn configured(config: &Path) -> Self {
        let directory = config.parent().expect("a directory");
        let path = config.to_str().expect("text");
        Self::start(command(directory, &["serve", "--config", path]), directory.join("log")).await
    }

    #[allow(dead_code, reason = "used by benchmarks only")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    pub fn terminate(&self) {
        kill_process(pid(&self.child), Signal::TERM).expect("it can be signaled");
    }

    /// Sends SIGHUP, so that the service reloads its files.
    pub fn hang_up(&self) {
        kill_process(pid(&self.child), Signal::HUP).expect("it can be signaled");
    }

    /// Waits until the service exits, and returns its exit status.
    pub async fn ended(&mut self) -> ExitStatus {
        until("the service's end", async || self.child.try_wait().expect("a child")).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A worker in its own process. Killed when dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    pub log: PathBuf,
}

impl Worker {
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(&self.child), signal).expect("it can be signaled");
    }

    /// Returns the worker's log.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("an id")).expect("an id")
}
