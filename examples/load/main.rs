//! Load generator: calls a service and reports throughput and latency.
//!
//! ```text
//! cargo run --release --example load -- closed --in-flight 256 APP_ID [REGION]…    a fixed number of concurrent calls
//! cargo run --release --example load -- open --rate 5000 APP_ID [REGION]…          a fixed rate of calls
//! cargo build --release && cargo run --release --example load -- overload         twice the rate that a service can serve
//! cargo build --release && cargo run --release --example load -- held             idle connections and watchers
//! ```
//!
//! The first two call the service at `APPFERRY_ENDPOINT` (default: `http://127.0.0.1:50051`) with `APPFERRY_TOKEN`. The
//! others start a service from the program that was built beside this one, on a core of its own, and print
//! `ratio NAME VALUE`.

mod calls;
mod delayed_proxy;
mod idle;
mod service;

use std::{env, error::Error, time::Duration};

use calls::{Load, Pace, Report};
use clap::{Args, Parser, Subcommand};

/// The same allocator as the service.
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
    /// Makes a fixed number of concurrent calls.
    Closed {
        /// Calls at a time.
        #[arg(long, default_value_t = 256)]
        in_flight: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Makes calls at a fixed rate, whatever their results.
    Open {
        /// The rate, in calls a second.
        #[arg(long)]
        rate: u32,
        #[command(flatten)]
        target: Target,
    },
    /// Measures the rate that a service can serve, and then makes calls at a multiple of this rate.
    Overload {
        /// The multiple of the measured rate.
        #[arg(long, default_value_t = 2.0)]
        times: f64,
        /// The URL of an empty database.
        #[arg(long, default_value = service::SQLITE)]
        database: String,
        /// The round-trip time to the database, in milliseconds.
        #[arg(long, default_value_t = 0)]
        round_trip_ms: u64,
    },
    /// Makes calls to a service whose OTLP collector accepts connections and never responds, in turns with a service
    /// without a collector.
    Collector {
        /// Calls a second.
        #[arg(long, default_value_t = 3_000)]
        rate: u32,
    },
    /// Measures the memory of idle connections and watchers.
    Held {
        /// The number of idle connections.
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
        /// The number of watchers of a synchronization that does not end.
        #[arg(long, default_value_t = 1_000)]
        watchers: usize,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// The duration, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The number of connections.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// The id of the image.
    app_id: String,
    /// The destination regions. Default: all.
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
            let round_trip = Duration::from_millis(round_trip_ms);
            let database =
                if round_trip.is_zero() { database } else { delayed_proxy::start(&database, round_trip).await? };
            overload(times, &database).await?;
        }
        Command::Collector { rate } => collector(rate).await?,
        Command::Held { connections, watchers } => idle::measure(connections, watchers).await?,
    }
    Ok(())
}

/// The duration of each measurement.
const DURATION: Duration = Duration::from_secs(8);
/// The numbers of concurrent calls to try. One of them reaches the highest rate of the service.
const CONCURRENCY: [usize; 3] = [64, 256, 1024];
/// The longest time until an excess call is rejected.
const REJECTION_LIMIT: Duration = Duration::from_millis(100);

async fn overload(times: f64, database: &str) -> Result<()> {
    let service = service::Service::start(true, database, &[])?;
    let endpoint = service.endpoint().await?;
    let app = service.image(&endpoint, 1 << 20)?;
    // The copies don't end, so that every call has an effect. There are so many regions that the load generator, which
    // has one core like the service, makes calls faster than the service can serve them.
    let load = Load::connect(&endpoint, service::TOKEN, 16, &app, service::slow().collect()).await?;
    load.run(Pace::Closed { in_flight: 64 }, Duration::from_secs(2)).await?;
    let mut peak = 0.0_f64;
    for in_flight in CONCURRENCY {
        let report = load.run(Pace::Closed { in_flight }, DURATION).await?;
        println!("{in_flight} concurrent: {report}");
        peak = peak.max(report.accepted_a_second());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no service takes 2^31 calls a second")]
    let rate = (times * peak) as u32;
    let report = load.run(Pace::Open { rate }, DURATION).await?;
    println!("{rate} a second: {report}");
    println!("ratio overload_goodput {:.3}", report.accepted_a_second() / peak);
    println!("ratio overload_told_in_time {:.4}", report.shed_within(REJECTION_LIMIT));
    println!("ratio overload_otherwise {:.4}", report.otherwise());
    service.stop()
}

/// The number of measurements per service.
const ROUNDS: usize = 4;

async fn collector(rate: u32) -> Result<()> {
    // Connections wait in the accept queue, and data sent on them is never read.
    let silent_collector = std::net::TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", silent_collector.local_addr()?);
    let traced = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let mut services = Vec::new();
    for environment in [&[][..], &traced] {
        let service = service::Service::start(true, service::SQLITE, environment)?;
        let endpoint = service.endpoint().await?;
        let app = service.image(&endpoint, 1 << 20)?;
        let load = Load::connect(&endpoint, service::TOKEN, 8, &app, service::slow().take(1).collect()).await?;
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
        slowest.push(report.slowest_hundredth().as_secs_f64());
        service.stop()?;
    }
    println!("ratio hanging_collector_p99 {:.2}", slowest[1] / slowest[0]);
    Ok(())
}
