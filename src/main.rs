//! The command line's entry.

use std::process::ExitCode;

use appferry::cli::Cli;
use clap::Parser as _;

/// Calls allocate on one thread and free on another all the time: see `docs/decisions/0006-allocator.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
