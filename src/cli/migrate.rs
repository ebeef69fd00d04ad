//! `appferry migrate`.

use std::path::{Path, PathBuf};

use super::{
    Error, Result,
    embedded::{self, DataDirectory},
};
use crate::{config::Config, state};

/// Creates the database or brings its schema up to date.
pub async fn run(file: Option<PathBuf>) -> Result<()> {
    let (config, _directory) = match file {
        Some(file) => (Config::load(&file).map_err(Error::local("the configuration"))?, None),
        None => {
            let directory = DataDirectory::open(Path::new(embedded::DIRECTORY))?;
            (directory.config()?, Some(directory))
        }
    };
    let settings = config.database.settings();
    let steps = state::migrate(&settings).await.map_err(Error::local("the database"))?;
    println!("{steps} steps taken; the schema is up to date");
    Ok(())
}
