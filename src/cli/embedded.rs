//! The embedded default: a data directory with everything in it, for a first start without any configuration.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Error, Result};
use crate::config::Config;

/// The directory, under the one that the service is started in.
pub const DIRECTORY: &str = "appferry-data";
/// The file in it with the administrator's token.
pub const TOKEN: &str = "admin-token";

/// The form of the directory, raised when an older version can't work with it.
const FORMAT: &str = "1";
const HOME: &str = "cn-hangzhou";
const REGIONS: [&str; 4] = [HOME, "cn-shanghai", "cn-beijing", "cn-shenzhen"];
const ADMINISTRATOR: &str = "acs:ram::1:user/admin";

/// A data directory that nobody else uses while this lives.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    token: String,
    _lock: File,
}

impl DataDirectory {
    /// Opens the directory, and makes it if there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let at = |what: &str| format!("{what} {}", path.display());
        make_directory(path).map_err(Error::local(at("the data directory")))?;
        let lock = File::create(path.join("lock")).map_err(Error::local(at("locking")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Ended(format!("{} is in use by another appferry", path.display())));
            }
            Err(TryLockError::Error(error)) => return Err(Error::local(at("locking"))(error)),
        }
        check_format(path)?;
        for region in REGIONS {
            make_directory(&path.join("regions").join(region)).map_err(Error::local(at("making the regions in")))?;
        }
        let token = token(&path.join(TOKEN)).map_err(Error::local(at("the administrator's token in")))?;
        Ok(Self { path: path.to_owned(), token, _lock: lock })
    }

    /// The configuration that it stands for, and the environment over it.
    pub fn config(&self) -> Result<Config> {
        let token = format!("token_sha256 = \"{}\"\n", hex::encode(Sha256::digest(&self.token)));
        Config::parse(&(settings(&self.path) + &token)).map_err(Error::local("the configuration"))
    }

    /// The administrator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Where the token is kept.
    pub fn token_file(&self) -> PathBuf {
        self.path.join(TOKEN)
    }

    /// Where a region's images are.
    pub fn region(&self, region: &str) -> PathBuf {
        self.path.join("regions").join(region)
    }
}

/// The configuration of the data directory without anybody's token: enough to find its stores and policies.
pub fn config(path: &Path) -> Result<Config> {
    Config::parse(&settings(path)).map_err(Error::local("the configuration"))
}

fn settings(path: &Path) -> String {
    let path = path.display();
    let regions = REGIONS.map(|id| format!("[[region]]\nid = \"{id}\"\nstore = \"dir://{path}/regions/{id}\"\n"));
    format!(
        "[database]\nurl = \"sqlite://{path}/state.db\"\n[audit]\nto = \"{path}/audit.log\"\n\
         [home]\nregion = \"{HOME}\"\n{}\
         [[policy]]\nname = \"administrator\"\n\
         document = '{{\"Version\":\"1\",\"Statement\":[{{\"Effect\":\"Allow\",\"Action\":\"ehpc:*\",\"Resource\":\"*\"}}]}}'\n\
         [[principal]]\narn = \"{ADMINISTRATOR}\"\npolicies = [\"administrator\"]\n",
        regions.concat()
    )
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn check_format(path: &Path) -> Result<()> {
    let file = path.join("format");
    let failed = || Error::local(format!("reading {}", file.display()));
    match fs::read_to_string(&file) {
        Ok(format) if format.trim() == FORMAT => Ok(()),
        Ok(format) => Err(Error::Ended(format!(
            "{} has the format {:?} and this version works with {FORMAT:?}: it was written by another version of appferry",
            path.display(),
            format.trim(),
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(&file, FORMAT).map_err(failed()),
        Err(error) => Err(failed()(error)),
    }
}

/// Reads the token, or makes one that only its owner may read.
fn token(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(token) if !token.trim().is_empty() => return Ok(token.trim().to_owned()),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let token = hex::encode(rand::random::<[u8; 32]>());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(token.as_bytes())?;
    file.sync_all()?;
    Ok(token)
}
