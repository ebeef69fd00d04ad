//! `appferry completions` and `appferry man`: generate shell completions and manual pages.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Error, Result};

/// The name of the program.
const NAME: &str = "appferry";

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// The existing directory to write the pages to, one per command.
    directory: PathBuf,
}

/// Prints the completion script.
pub fn completions(arguments: &Completions) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), NAME, &mut text);
    std::io::stdout().write_all(&text).map_err(Error::local("failed to write to standard output"))
}

/// Writes the manual pages.
pub fn man(arguments: &Man) -> Result<()> {
    let context = || format!("failed to write the pages to {}", arguments.directory.display());
    clap_mangen::generate_to(Cli::command(), &arguments.directory).map_err(Error::local(context()))
}
