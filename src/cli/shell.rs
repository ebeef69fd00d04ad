//! `appferry completions` and `appferry man`: what a shell and a reader of manuals need to know of the command line.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Error, Result};

/// What the program is called.
const NAME: &str = "appferry";

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that reads them.
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// The directory that the pages are written to, one a command; it must be there.
    directory: PathBuf,
}

/// Prints what the shell is to read.
pub fn completions(arguments: &Completions) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), NAME, &mut text);
    std::io::stdout().write_all(&text).map_err(Error::local("standard output"))
}

/// Writes the pages.
pub fn man(arguments: &Man) -> Result<()> {
    let context = || format!("writing the pages to {}", arguments.directory.display());
    clap_mangen::generate_to(Cli::command(), &arguments.directory).map_err(Error::local(context()))
}
