//! The entry point of the command line.

use std::process::ExitCode;

use appferry::cli::Cli;
use clap::Parser as _;

/// The allocator. Calls allocate on one thread and free on another: see `docs/decisions/0006-allocator.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
