//! Loads a service with calls, and tells how it takes that.
//!
//! ```text
//! cargo run --release --example load -- closed --in-flight 256 APP_ID [REGION]…    so many calls at a time, each after another
//! cargo run --release --example load -- open --rate 5000 APP_ID [REGION]…          so many calls a second, whatever becomes of them
//! cargo build --release && cargo run --release --example load -- overload         twice as many as a service can take
//! cargo build --release && cargo run --release --example load -- held             connections and watchers that wait
//! ```
//!
//! The first two call the service at `APPFERRY_ENDPOINT` (`http://127.0.0.1:50051` without it) with `APPFERRY_TOKEN`. The others start
//! one of their own, on a core of its own, from the program that was built beside this one; they print `ratio NAME VALUE`.

mod calls;
mod far;
mod held;
mod own;

use std::{env, error::Error, time::Duration};

use calls::{Load, Pace, Report};
use clap::{Args, Parser, Subcommand};

/// The one that the service runs with.
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
    /// So many calls at a time, each after another.
    Closed {
        /// Calls at a time.
        #[arg(long, default_value_t = 256)]
        in_flight: usize,
        #[command(flatten)]
        what: What,
    },
    /// So many calls a second, whatever becomes of them.
    Open {
        /// Calls a second.
        #[arg(long)]
        rate: u32,
        #[command(flatten)]
        what: What,
    },
    /// Finds out how many calls a service can take, and offers it more.
    Overload {
        /// How many times as many.
        #[arg(long, default_value_t = 2.0)]
        times: f64,
        /// The database of the service, which is to be empty.
        #[arg(long, default_value = own::SQLITE)]
        database: String,
        /// How far away it is: what a question and its answer take on their way, in milliseconds.
        #[arg(long, default_value_t = 0)]
        round_trip_ms: u64,
    },
    /// Calls a service whose collector of traces and metrics takes connections and never answers, in turns with one that has no collector.
    Collector {
        /// Calls a second.
        #[arg(long, default_value_t = 3_000)]
        rate: u32,
    },
    /// Has connections and watchers wait, and tells what each of them costs the service.
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
struct What {
    /// For how long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Over how many connections.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// The image to ask for.
    app_id: String,
    /// Where to carry it to; without any, everywhere.
    regions: Vec<String>,
}

impl What {
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
        Command::Closed { in_flight, what } => println!("{}", what.run(Pace::Closed { in_flight }).await?),
        Command::Open { rate, what } => println!("{}", what.run(Pace::Open { rate }).await?),
        Command::Overload { times, database, round_trip_ms } => {
            let far = Duration::from_millis(round_trip_ms);
            let database = if far.is_zero() { database } else { far::away(&database, far).await? };
            overload(times, &database).await?;
        }
        Command::Collector { rate } => collector(rate).await?,
        Command::Held { connections, watchers } => held::hold(connections, watchers).await?,
    }
    Ok(())
}

/// How long each measurement takes.
const MEASURED: Duration = Duration::from_secs(8);
/// Calls at a time, among which the service is at its best with one.
const AT_A_TIME: [usize; 3] = [64, 256, 1024];
/// How long a call that can't be taken may wait until it is told so.
const TOLD_WITHIN: Duration = Duration::from_millis(100);

async fn overload(times: f64, database: &str) -> Result<()> {
    let service = own::Service::start(true, database, &[])?;
    let endpoint = service.endpoint().await?;
    let app = service.image(&endpoint, 1 << 20)?;
    // The copies don't end, so that there is something to ask for each time. There are so many of them that whoever calls can call more than
    // the service can take, although there is one core for each.
    let load = Load::connect(&endpoint, own::TOKEN, 16, &app, own::slow().collect()).await?;
    load.run(Pace::Closed { in_flight: 64 }, Duration::from_secs(2)).await?;
    let mut peak = 0.0_f64;
    for in_flight in AT_A_TIME {
        let report = load.run(Pace::Closed { in_flight }, MEASURED).await?;
        println!("{in_flight} at a time: {report}");
        peak = peak.max(report.accepted_a_second());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no service takes 2^31 calls a second")]
    let rate = (times * peak) as u32;
    let report = load.run(Pace::Open { rate }, MEASURED).await?;
    println!("{rate} a second: {report}");
    println!("ratio overload_goodput {:.3}", report.accepted_a_second() / peak);
    println!("ratio overload_told_in_time {:.4}", report.shed_within(TOLD_WITHIN));
    println!("ratio overload_otherwise {:.4}", report.otherwise());
    service.stop()
}

/// How often each of the two is called, in turns.
const ROUNDS: usize = 4;

async fn collector(rate: u32) -> Result<()> {
    // Whoever connects is left waiting in the queue of what was not accepted, and what it sends is not read.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let traced = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let mut services = Vec::new();
    for environment in [&[][..], &traced] {
        let service = own::Service::start(true, own::SQLITE, environment)?;
        let endpoint = service.endpoint().await?;
        let app = service.image(&endpoint, 1 << 20)?;
        let load = Load::connect(&endpoint, own::TOKEN, 8, &app, own::slow().take(1).collect()).await?;
        load.run(Pace::Open { rate }, Duration::from_secs(2)).await?;
        services.push((service, load, Report::default()));
    }
    for _ in 0..ROUNDS {
        for (_, load, report) in &mut services {
            report.add(load.run(Pace::Open { rate }, MEASURED).await?);
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
