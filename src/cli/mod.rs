//! The command line, one file a command.
//!
//! What a command says goes to standard output, with `--json` as JSON and nothing else; progress and errors go to standard
//! error. Exit status: 0 done, 1 failed, 2 usage, 3 a service that could not be shut down in order.

mod cancel;
mod connection;
mod data_dir;
mod demo;
mod doctor;
mod health;
mod image;
mod leftovers;
mod list;
mod migrate;
mod origin;
mod policy;
mod print;
mod progress;
mod regions;
mod serve;
mod shell;
mod signals;
mod status;
mod sync;
mod verify;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    client,
    domain::with_causes,
    service::Role,
    telemetry::{DEFAULT_LOG, Telemetry},
};

/// Every blob that is read from a directory or written to one takes a thread meanwhile. There must be more than all passes
/// together can want, or readers would wait for writers that wait for them. They are made as they are needed.
const BLOCKING_THREADS: usize = 8_192;
/// How long threads of the runtime may take to end when everything else has. Those that hang in the kernel are left behind.
const LEAVE: Duration = Duration::from_millis(100);

/// Carries an HPC application's image from its home region to any number of other regions.
#[derive(Debug, Parser)]
#[command(name = "appferry", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer calls and carry images.
    Serve(ConfigFile),
    /// Carry images, without answering calls.
    Worker(ConfigFile),
    /// Create the database or bring its schema up to date.
    Migrate(ConfigFile),
    /// Show the main job: start the embedded service, add an image, carry it to every region, verify it there.
    Demo(demo::Arguments),
    /// Add, list, show or remove images.
    #[command(subcommand)]
    Image(image::Command),
    /// Carry an image to other regions.
    Sync(sync::Arguments),
    /// Show where a synchronization stands.
    Status(status::Arguments),
    /// List synchronizations, newest first.
    List(list::Arguments),
    /// Cancel what a synchronization has not finished.
    Cancel(cancel::Arguments),
    /// List the configured regions.
    Regions(regions::Arguments),
    /// Ask a service whether it is healthy.
    Health(health::Arguments),
    /// Find out what policies say.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Find out whether everything that the service needs is there, and what to mend.
    Doctor(doctor::Arguments),
    /// Print what a shell completes commands by.
    Completions(shell::Completions),
    /// Write manual pages.
    Man(shell::Man),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file; without one, the embedded default in ./appferry-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The service refused, or could not be reached.
    #[error(transparent)]
    Client(client::Error),
    /// The synchronization ended otherwise than it should.
    #[error("{0}")]
    Ended(String),
    /// Something on this machine.
    #[error("{context}")]
    Local {
        /// What was being done.
        context: String,
        /// What was wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The service could not be shut down in order: something hung.
    #[error("something hung at the end and was left behind; leases will expire")]
    CutShort,
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
}

type Result<T> = std::result::Result<T, Error>;

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Endpoint { .. } => Self::Usage(format!("--endpoint {}", with_causes(&error))),
            client::Error::Token => Self::Usage(error.to_string()),
            _ => Self::Client(error),
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Client(status.into())
    }
}

impl Error {
    fn local<E>(context: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let context = context.into();
        move |error| Self::Local { context, source: error.into() }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::CutShort => signals::CUT_SHORT,
            _ => 1,
        })
    }
}

impl Cli {
    /// Runs the command. What goes wrong is told on standard error.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = match runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build() {
            Ok(runtime) => runtime,
            Err(error) => {
                print::note(&format!("appferry: the runtime can't be started: {error}"));
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
        runtime.shutdown_timeout(LEAVE);
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print::note(&format!("appferry: {}", with_causes(&error)));
                error.exit_code()
            }
        }
    }
}

/// Runs something with logs and traces, and sends the last spans after everything has ended.
fn traced(runtime: &tokio::runtime::Runtime, log: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let telemetry = runtime.block_on(async { Telemetry::start(log) }).map_err(Error::local("telemetry"))?;
    let result = runtime.block_on(work);
    telemetry.shutdown();
    result
}
