//! The data directory of the embedded default, with everything in it, for a first start without any configuration. Every file in it is
//! written in one step.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Error, Result};
use crate::{config::Config, db};

/// The directory, under the one that the service is started in.
pub const DIRECTORY: &str = "appferry-data";
/// The file in it with the administrator's token.
pub const TOKEN: &str = "admin-token";

/// The database in it.
const DATABASE: &str = "state.db";
/// What SQLite keeps beside it and has not folded back yet.
const LOG: &str = "state.db-wal";
/// Says that there is a database.
const MARKER: &str = "database-created";
/// The form of the directory, raised when an older version can't work with it.
const FORMAT: &str = "1";
const HOME: &str = "cn-hangzhou";
const REGIONS: [&str; 4] = [HOME, "cn-shanghai", "cn-beijing", "cn-shenzhen"];
const ADMINISTRATOR: &str = "acs:ram::1:user/admin";

/// A data directory that no other process uses while this lives.
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
        check_owner(path)?;
        let mut lock = OpenOptions::new();
        let lock = lock.write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"));
        let lock = lock.map_err(Error::local(at("locking")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Ended(format!("{} is in use by another appferry", path.display())));
            }
            Err(TryLockError::Error(error)) => return Err(Error::local(at("locking"))(error)),
        }
        check_format(path)?;
        check_database(path)?;
        for region in REGIONS {
            make_directory(&path.join("regions").join(region)).map_err(Error::local(at("making the regions in")))?;
        }
        check_owner(&path.join(TOKEN))?;
        let token = token(&path.join(TOKEN)).map_err(Error::local(at("the administrator's token in")))?;
        Ok(Self { path: path.to_owned(), token, _lock: lock })
    }

    /// The configuration that it stands for, and the environment over it.
    pub fn config(&self) -> Result<Config> {
        let token = format!("token_sha256 = \"{}\"\n", hex::encode(Sha256::digest(&self.token)));
        Config::parse(&(settings(&self.path) + &token)).map_err(Error::local("the configuration"))
    }

    /// Creates the database or brings its schema up to date, and remembers that there is one. Returns how many steps were applied.
    pub async fn migrate(&self, config: &Config) -> Result<usize> {
        let steps = db::migrate(&config.database.settings()).await.map_err(Error::local("the database"))?;
        write_whole(&self.path.join(MARKER), "", 0o600).map_err(Error::local("remembering the database"))?;
        Ok(steps)
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
        "[database]\nurl = \"sqlite://{path}/{DATABASE}\"\n[audit]\nto = \"{path}/audit.log\"\n\
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

/// Refuses what belongs to somebody else, or what others can write to: they could have put a token there that they know, or a database. What
/// is not there is nobody's.
fn check_owner(path: &Path) -> Result<()> {
    let failed = || Error::local(format!("looking at {}", path.display()));
    // The link, if it is one, and where it leads.
    for found in [fs::symlink_metadata(path), fs::metadata(path)] {
        let found = match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(failed())?,
        };
        let (own, shown) = (rustix::process::geteuid().as_raw(), path.display());
        if found.uid() != own {
            return Err(Error::Ended(format!(
                "{shown} belongs to the user {}, and this is {own}: whoever owns it could have put anything there; run as that user, or elsewhere",
                found.uid()
            )));
        }
        if !found.is_symlink() && found.mode() & 0o022 != 0 {
            return Err(Error::Ended(format!(
                "{shown} has mode {:04o} and can be written to by others: see that nothing in it is theirs, and `chmod go-w` it",
                found.mode() & 0o7777
            )));
        }
    }
    Ok(())
}

/// Refuses a directory of another version. Where the format is missing or empty, the directory is new, or its first start was
/// interrupted.
fn check_format(path: &Path) -> Result<()> {
    let file = path.join("format");
    let failed = || Error::local(format!("the format in {}", file.display()));
    let format = read(&file).map_err(failed())?.unwrap_or_default();
    match format.trim() {
        "" => write_whole(&file, FORMAT, 0o600).map_err(failed()),
        FORMAT => Ok(()),
        other => Err(Error::Ended(format!(
            "{} has the format {other:?} and this version works with {FORMAT:?}: it was written by another version of appferry",
            path.display(),
        ))),
    }
}

/// Refuses a directory whose database is gone, empty or cut short, though there was one: an empty one in its place would hide that
/// everything has been lost.
fn check_database(path: &Path) -> Result<()> {
    let marker = path.join(MARKER);
    let database = path.join(DATABASE);
    let failed = || Error::local(format!("reading {}", database.display()));
    if read(&marker).map_err(failed())?.is_none() {
        return Ok(());
    }
    let problem = match File::open(&database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("is missing"),
        Err(error) => return Err(failed()(error)),
        Ok(file) => damage(&file, &path.join(LOG)).map_err(failed())?,
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(Error::Ended(format!(
            "{} {problem}, though there was a database before: restore it from a backup, or remove {} to begin with an empty one",
            database.display(),
            marker.display(),
        ))),
    }
}

/// What is wrong with a file of SQLite, by its header (<https://sqlite.org/fileformat2.html#the_database_header>) and its length.
fn damage(file: &File, log: &Path) -> io::Result<Option<&'static str>> {
    let length = file.metadata()?.len();
    let mut header = [0; 100];
    if length == 0 {
        return Ok(Some("is empty"));
    }
    if length < header.len() as u64 {
        return Ok(Some("is cut short"));
    }
    file.read_exact_at(&mut header, 0)?;
    if !header.starts_with(b"SQLite format 3\0") {
        return Ok(Some("is no database of SQLite"));
    }
    let page = match u64::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => 65_536,
        size => size,
    };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    // What is still in the log has yet to be folded back into the file.
    let is_logged = fs::metadata(log).is_ok_and(|log| log.len() > 0);
    Ok((!is_logged && length < pages * page).then_some("is cut short"))
}

/// Reads the token, or makes one that only its owner may read.
fn token(path: &Path) -> io::Result<String> {
    if let Some(token) = read(path)?.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()) {
        return Ok(token);
    }
    let token = hex::encode(rand::random::<[u8; 32]>());
    write_whole(path, &token, 0o600)?;
    Ok(token)
}

/// Reads a file; nothing if there is none.
fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file in one step: whenever the process or the machine stops, it is there with all of its content, or as it was before.
fn write_whole(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = directory.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::PermissionsExt as _,
    };

    use super::{DATABASE, DataDirectory, MARKER, TOKEN};

    #[tokio::test]
    async fn what_an_interrupted_first_start_left_is_completed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        for file in ["format", "format.new", TOKEN, DATABASE] {
            File::create(path.join(file)).expect("an empty file");
        }
        let token = {
            let opened = DataDirectory::open(path).expect("it is completed");
            opened.migrate(&opened.config().expect("a configuration")).await.expect("the schema");
            opened.token().to_owned()
        };
        assert_eq!(fs::read_to_string(path.join("format")).expect("a format"), "1");
        assert!(!path.join("format.new").exists());
        let file = path.join(TOKEN);
        assert_eq!(fs::read_to_string(&file).expect("a token"), token);
        assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(DataDirectory::open(path).expect("it opens again").token(), token);
    }

    #[tokio::test]
    async fn a_database_that_is_gone_or_cut_short_is_not_taken_for_a_new_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        {
            let opened = DataDirectory::open(path).expect("it is new");
            opened.migrate(&opened.config().expect("a configuration")).await.expect("the schema");
        }
        let database = path.join(DATABASE);
        let whole = fs::read(&database).expect("a database");
        let refused = || DataDirectory::open(path).expect_err("it is refused").to_string();
        for length in [0, 50, whole.len() / 2] {
            fs::write(&database, &whole[..length]).expect("it is written");
            let refused = refused();
            let named = if length == 0 { "is empty" } else { "is cut short" };
            assert!(refused.contains(named) && refused.contains(MARKER), "{length}: {refused}");
        }
        fs::write(&database, vec![0x5a; whole.len()]).expect("it is written");
        assert!(refused().contains("is no database"), "{}", refused());
        fs::remove_file(&database).expect("it is there");
        assert!(refused().contains("is missing"), "{}", refused());
        fs::write(&database, &whole).expect("it is written");
        DataDirectory::open(path).expect("it is whole again");
        fs::remove_file(&database).and_then(|()| fs::remove_file(path.join(MARKER))).expect("they are there");
        DataDirectory::open(path).expect("it begins with an empty one");
    }
}
