//! The command line, one file per command.
//!
//! Results go to standard output; with `--json`, standard output is JSON and nothing else. Progress and errors go to
//! standard error. Exit status: 0 success, 1 failure, 2 usage error, 3 incomplete shutdown of a service.

mod cancel;
mod connection;
mod data_dir;
mod demo;
mod doctor;
mod error;
mod health;
mod image;
mod leftovers;
mod list;
mod migrate;
mod policy;
mod print;
mod progress;
mod proxy_advice;
mod regions;
mod serve;
mod shell;
mod signals;
mod status;
mod sync;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use self::error::{Error, Result};
use crate::{
    app::Role,
    telemetry::{DEFAULT_LOG, Telemetry},
};

/// The limit of blocking threads, which are started as needed. Reading or writing a blob in a directory blocks one.
/// The limit must exceed the need of all transfers together; otherwise readers would wait for writers that in turn wait
/// for them.
const BLOCKING_THREADS: usize = 8_192;
/// The time limit for the runtime's threads to end. Threads that hang in the kernel are left behind.
const RUNTIME_SHUTDOWN: Duration = Duration::from_millis(100);

/// Copies an HPC application's image from its home region to any number of other regions.
#[derive(Debug, Parser)]
#[command(name = "appferry", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API and copy images.
    Serve(ConfigFile),
    /// Copy images without serving the API.
    Worker(ConfigFile),
    /// Create the database, or migrate its schema to this version.
    Migrate(ConfigFile),
    /// Start a local service, add an image, copy it to every region, and verify the copies.
    Demo(demo::Arguments),
    /// Add, list, show, verify or remove images.
    #[command(subcommand)]
    Image(image::Command),
    /// Synchronize an image to other regions.
    Sync(sync::Arguments),
    /// Show the state of a synchronization.
    Status(status::Arguments),
    /// List synchronizations, newest first.
    List(list::Arguments),
    /// Cancel the unfinished copies of a synchronization.
    Cancel(cancel::Arguments),
    /// List the configured regions.
    Regions(regions::Arguments),
    /// Check the health of a service.
    Health(health::Arguments),
    /// Inspect access policies.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Check everything that the service needs, and suggest remedies.
    Doctor(doctor::Arguments),
    /// Generate shell completions.
    Completions(shell::Completions),
    /// Generate manual pages.
    Man(shell::Man),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file. Default: four local regions in ./appferry-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Cli {
    /// Runs the command. Prints errors to standard error.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = match runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build() {
            Ok(runtime) => runtime,
            Err(error) => {
                print::note(&format!("error: failed to start the runtime: {error}"));
                return ExitCode::FAILURE;
            }
        };
        let result = match self.command {
            Command::Serve(file) => traced(&runtime, DEFAULT_LOG, serve::run(file.config, Role::ServerAndWorker)),
            Command::Worker(file) => traced(&runtime, DEFAULT_LOG, serve::run(file.config, Role::Worker)),
            Command::Demo(arguments) => traced(&runtime, demo::LOG, demo::run(arguments)),
            Command::Migrate(file) => runtime.block_on(migrate::run(file.config)),
            Command::Image(command) => runtime.block_on(image::run(command)),
            Command::Sync(arguments) => runtime.block_on(sync::run(arguments)),
            Command::Status(arguments) => runtime.block_on(status::run(arguments)),
            Command::List(arguments) => runtime.block_on(list::run(arguments)),
            Command::Cancel(arguments) => runtime.block_on(cancel::run(arguments)),
            Command::Regions(arguments) => runtime.block_on(regions::run(arguments)),
            Command::Health(arguments) => runtime.block_on(health::run(arguments)),
            Command::Policy(command) => policy::run(command, &crate::system_clock()),
            Command::Doctor(arguments) => runtime.block_on(doctor::run(arguments)),
            Command::Completions(arguments) => shell::completions(&arguments),
            Command::Man(arguments) => shell::man(&arguments),
        };
        runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print::note(&error.report());
                error.exit_code()
            }
        }
    }
}

/// Runs `work` with logs and traces, and exports the last spans after it has ended.
fn traced(runtime: &tokio::runtime::Runtime, log: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let telemetry =
        runtime.block_on(async { Telemetry::start(log) }).map_err(Error::local("failed to start telemetry"))?;
    let result = runtime.block_on(work);
    telemetry.shutdown();
    result
}
