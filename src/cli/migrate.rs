//! `appferry migrate`.

use std::path::{Path, PathBuf};

use super::{
    Error, Result,
    data_dir::{self, DataDirectory},
};
use crate::{config::Config, db};

/// Creates the database or brings its schema up to date.
pub async fn run(file: Option<PathBuf>) -> Result<()> {
    let steps = match file {
        Some(file) => {
            let config = Config::load(&file).map_err(Error::local("the configuration"))?;
            db::migrate(&config.database.settings()).await.map_err(Error::local("the database"))?
        }
        None => {
            let directory = DataDirectory::open(Path::new(data_dir::DIRECTORY))?;
            directory.migrate(&directory.config()?).await?
        }
    };
    println!("{steps} steps taken; the schema is up to date");
    Ok(())
}
