//! Load generator: calls a service and reports throughput and latency.
//!
//! ```text
//! cargo run --release --example load -- closed --in-flight 256 APP_ID [REGION]…    a fixed number of calls in flight
//! cargo run --release --example load -- open --rate 5000 APP_ID [REGION]…          a fixed rate of calls
//! cargo build --release && cargo run --release --example load -- overload         twice the capacity of a service
//! cargo build --release && cargo run --release --example load -- held             idle connections and watchers
//! ```
//!
//! `closed` and `open` call the service at `APPFERRY_ENDPOINT` (default `http://127.0.0.1:50051`) with
//! `APPFERRY_TOKEN`. The other commands start their own service, on its own core, from the program that was built
//! beside this example; they print `ratio NAME VALUE`.

mod calls;
mod idle;
mod latency;
mod local_service;

use std::{env, error::Error, time::Duration};

use calls::{Load, Pace, Report};
use clap::{Args, Parser, Subcommand};

/// The allocator that the service uses in production.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep a fixed number of calls in flight.
    Closed {
        /// Calls in flight.
        #[arg(long, default_value_t = 256)]
        in_flight: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Make calls at a fixed rate, independent of the responses.
    Open {
        /// Calls per second.
        #[arg(long)]
        rate: u32,
        #[command(flatten)]
        target: Target,
    },
    /// Measure the capacity of a service, then offer a multiple of it.
    Overload {
        /// Offered load as a multiple of the capacity.
        #[arg(long, default_value_t = 2.0)]
        times: f64,
        /// URL of the service's database, which must be empty.
        #[arg(long, default_value = local_service::SQLITE)]
        database: String,
        /// Round-trip time to add to the database connection, in milliseconds.
        #[arg(long, default_value_t = 0)]
        round_trip_ms: u64,
    },
    /// Compare the latency of a service whose OTLP collector accepts connections and never responds with one without a
    /// collector.
    Collector {
        /// Calls per second.
        #[arg(long, default_value_t = 3_000)]
        rate: u32,
    },
    /// Open idle connections and watchers, and print the memory that each costs the service.
    Held {
        /// Connections without a call.
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
        /// Watchers of a synchronization that does not end.
        #[arg(long, default_value_t = 1_000)]
        watchers: usize,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// Duration in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Number of connections.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Image to synchronize.
    app_id: String,
    /// Target regions; all regions if none is given.
    regions: Vec<String>,
}

impl Target {
    async fn run(self, pace: Pace) -> Result<Report> {
        let endpoint = env::var("APPFERRY_ENDPOINT").unwrap_or_else(|_| "http://127.0.0.1:50051".to_owned());
        let token = env::var("APPFERRY_TOKEN").map_err(|_| "APPFERRY_TOKEN is not set")?;
        let load = Load::connect(&endpoint, &token, self.connections, &self.app_id, self.regions).await?;
        load.run(pace, Duration::from_secs(self.seconds)).await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Closed { in_flight, target } => println!("{}", target.run(Pace::Closed { in_flight }).await?),
        Command::Open { rate, target } => println!("{}", target.run(Pace::Open { rate }).await?),
        Command::Overload { times, database, round_trip_ms } => {
            let latency = Duration::from_millis(round_trip_ms);
            let database = if latency.is_zero() { database } else { latency::delayed(&database, latency).await? };
            overload(times, &database).await?;
        }
        Command::Collector { rate } => collector(rate).await?,
        Command::Held { connections, watchers } => idle::measure(connections, watchers).await?,
    }
    Ok(())
}

/// Duration of each measurement.
const DURATION: Duration = Duration::from_secs(8);
/// Concurrency levels, one of which saturates the service.
const CONCURRENCY: [usize; 3] = [64, 256, 1024];
/// Deadline for rejecting a call that exceeds the capacity.
const REJECTED_WITHIN: Duration = Duration::from_millis(100);

async fn overload(times: f64, database: &str) -> Result<()> {
    let service = local_service::Service::start(true, database, &[])?;
    let endpoint = service.endpoint().await?;
    let app = service.image(&endpoint, 1 << 20)?;
    // Copies into slow regions do not end, so every call has work to add. Sixteen connections let the load generator
    // exceed the capacity of the service, although each has one core.
    let load = Load::connect(&endpoint, local_service::TOKEN, 16, &app, local_service::slow().collect()).await?;
    load.run(Pace::Closed { in_flight: 64 }, Duration::from_secs(2)).await?;
    let mut peak = 0.0_f64;
    for in_flight in CONCURRENCY {
        let report = load.run(Pace::Closed { in_flight }, DURATION).await?;
        println!("{in_flight} at a time: {report}");
        peak = peak.max(report.accepted_a_second());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no service takes 2^31 calls a second")]
    let rate = (times * peak) as u32;
    let report = load.run(Pace::Open { rate }, DURATION).await?;
    println!("{rate} a second: {report}");
    println!("ratio overload_goodput {:.3}", report.accepted_a_second() / peak);
    println!("ratio overload_told_in_time {:.4}", report.shed_within(REJECTED_WITHIN));
    println!("ratio overload_otherwise {:.4}", report.otherwise());
    service.stop()
}

/// Rounds for each of the two services.
const ROUNDS: usize = 4;

async fn collector(rate: u32) -> Result<()> {
    // Connections stay in the accept backlog, and their data is never read.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let traced = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let mut services = Vec::new();
    for environment in [&[][..], &traced] {
        let service = local_service::Service::start(true, local_service::SQLITE, environment)?;
        let endpoint = service.endpoint().await?;
        let app = service.image(&endpoint, 1 << 20)?;
        let load =
            Load::connect(&endpoint, local_service::TOKEN, 8, &app, local_service::slow().take(1).collect()).await?;
        load.run(Pace::Open { rate }, Duration::from_secs(2)).await?;
        services.push((service, load, Report::default()));
    }
    for _ in 0..ROUNDS {
        for (_, load, report) in &mut services {
            report.add(load.run(Pace::Open { rate }, DURATION).await?);
        }
    }
    let mut slowest = Vec::new();
    for ((service, _, report), name) in services.into_iter().zip(["without a collector", "with one that hangs"]) {
        println!("{name}: {report}");
        slowest.push(report.percentile_99().as_secs_f64());
        service.stop()?;
    }
    println!("ratio hanging_collector_p99 {:.2}", slowest[1] / slowest[0]);
    Ok(())
}
