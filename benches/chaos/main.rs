//! The chaos test with a chosen duration: `scripts/chaos [--minutes N] [--seed S]`. `tests/it/chaos` describes the
//! scenarios.

#[path = "../../tests/it/chaos/mod.rs"]
#[allow(clippy::expect_used, clippy::panic, reason = "it panics as tests do")]
mod chaos;
#[path = "../../tests/it/harness/mod.rs"]
#[allow(dead_code, clippy::expect_used, clippy::panic, reason = "it is the tests' harness, which panics as tests do")]
mod harness;

use std::{process::ExitCode, time::Duration};

use chaos::{Run, Scenario};
use clap::Parser;

/// Runs three servers and three workers on one PostgreSQL through random failures, and checks the outcome.
#[derive(Debug, Parser)]
struct Arguments {
    /// Duration in minutes.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Seed of the random schedule; random if absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Ignored; cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}, {} minutes", arguments.minutes);
    let lasts = Duration::from_secs_f64(arguments.minutes * 60.0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    let outcome = runtime.block_on(chaos::run(Run { seed, lasts, first: Scenario::ALL.to_vec() }));
    println!("{outcome}");
    if outcome.kept() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
