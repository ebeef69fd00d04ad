//! `appferry migrate`: creates or migrates the database.

use std::path::{Path, PathBuf};

use super::{
    Error, Result,
    data_dir::{self, DataDirectory},
    print,
};
use crate::{config::Config, db};

/// Creates the database, or migrates its schema to this version.
pub async fn run(file: Option<PathBuf>) -> Result<()> {
    let count = match file {
        Some(file) => {
            let config = Config::load(&file).map_err(Error::local("invalid configuration"))?;
            db::migrate(&config.database.settings()).await.map_err(Error::local("failed to migrate the database"))?
        }
        None => {
            let directory = DataDirectory::open(Path::new(data_dir::DIRECTORY))?;
            directory.migrate(&directory.config()?).await?
        }
    };
    let migrations = if count == 1 { "migration" } else { "migrations" };
    print::line(&format!("{count} {migrations} applied; the schema is up to date"))
}
