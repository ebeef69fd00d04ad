//! The command line's entry.

use std::process::ExitCode;

use appferry::cli::Cli;
use clap::Parser as _;

fn main() -> ExitCode {
    Cli::parse().run()
}
