//! Runs a service from the program that was built beside this one, in a temporary directory, on a core of its own if
//! there are several.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::Result;

pub const TOKEN: &str = "load";

/// The default database.
pub const SQLITE: &str = "sqlite://state.db";

/// A region into which copies end at once.
pub const FAST: &str = "fast";

/// Regions into which copies never end.
pub fn slow() -> impl Iterator<Item = String> {
    (0..30).map(|n| format!("slow-{n}"))
}

/// The interval at which the service is checked for readiness.
const POLL: Duration = Duration::from_millis(20);

pub struct Service {
    child: Child,
    directory: TempDir,
}

impl Service {
    /// Starts the service. If `apart` is set, the service gets a core of its own.
    pub fn start(apart: bool, database: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let ids = ["home".to_owned(), FAST.to_owned()].into_iter().chain(slow());
        let regions = ids.map(|id| {
            let path = directory.path().join(&id);
            fs::create_dir(&path)?;
            let pace = if id.starts_with("slow") { "ingress_bytes_per_second = 1024\n" } else { "" };
            Ok::<_, std::io::Error>(format!("[[region]]\nid = \"{id}\"\nstore = \"dir://{}\"\n{pace}", path.display()))
        });
        let regions = regions.collect::<std::io::Result<Vec<_>>>()?.concat();
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[database]\nurl = \"{database}\"\n[home]\nregion = \"home\"\n{regions}\
             [audit]\nto = \"audit\"\n\
             [[principal]]\narn = \"acs:ram::1:user/load\"\ntoken_sha256 = \"{}\"\npolicies = [\"all\"]\n\
             [[policy]]\nname = \"all\"\ndocument = '{{\"Version\":\"1\",\"Statement\":[{{\"Effect\":\"Allow\",\
             \"Action\":\"*\",\"Resource\":\"*\"}}]}}'\n",
            hex::encode(Sha256::digest(TOKEN)),
        );
        fs::write(directory.path().join("appferry.toml"), config)?;
        let program = program()?;
        let run = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.args(arguments).current_dir(directory.path()).stdout(Stdio::null());
            command
        };
        if !run(&["migrate", "--config", "appferry.toml"]).status()?.success() {
            return Err("failed to create the schema".into());
        }
        let log = fs::File::create(directory.path().join("log"))?;
        let mut serve = run(&["serve", "--config", "appferry.toml"]);
        serve.envs(environment.iter().copied());
        let cores = cores()?;
        // A child inherits the affinity of its parent. The load generator must not take processor time from the
        // service.
        if apart
            && let [first, rest @ ..] = &cores[..]
            && !rest.is_empty()
        {
            set_affinity(&[*first])?;
            let child = serve.stderr(log).spawn()?;
            set_affinity(rest)?;
            return Ok(Self { child, directory });
        }
        Ok(Self { child: serve.stderr(log).spawn()?, directory })
    }

    /// Waits until the service listens. Returns its URL.
    pub async fn endpoint(&self) -> Result<String> {
        loop {
            let log = fs::read_to_string(self.log())?;
            let line = log.lines().find(|line| line.contains("serving"));
            if let Some((_, rest)) = line.and_then(|line| line.split_once("address=")) {
                return Ok(format!("http://{}", rest.split_whitespace().next().unwrap_or_default()));
            }
            if log.contains("error: ") {
                return Err(log.into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Registers an image of `bytes` bytes. Returns its id.
    pub fn image(&self, endpoint: &str, bytes: usize) -> Result<String> {
        let file = self.directory.path().join("disk");
        fs::write(&file, vec![7; bytes])?;
        let mut add = Command::new(program()?);
        add.args(["image", "add", "--config", "appferry.toml", "--name", "load", "--file", "disk"]);
        let output = add
            .args(["--endpoint", endpoint])
            .env("APPFERRY_TOKEN", TOKEN)
            .current_dir(self.directory.path())
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The resident memory of the service, in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        Ok(kib.map(|kib: u64| kib * 1024).ok_or("/proc has no VmRSS")?)
    }

    /// Shuts the service down.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails if the service has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cores of the process at its start, before its affinity was restricted.
fn cores() -> Result<Vec<usize>> {
    static ALL: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    if ALL.get().is_none() {
        let set = sched_getaffinity(None)?;
        let _ = ALL.set((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect());
    }
    Ok(ALL.get().cloned().unwrap_or_default())
}

/// Restricts this process to `cores`.
fn set_affinity(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// The service's program, in the parent of the directory of the examples.
fn program() -> Result<PathBuf> {
    let example = env::current_exe()?;
    let program = example
        .parent()
        .and_then(|examples| examples.parent())
        .ok_or("this program has no parent directory")?
        .join("appferry");
    if program.exists() {
        Ok(program)
    } else {
        Err(format!("{} is missing; run cargo build", program.display()).into())
    }
}
