//! The data directory of a service without a configuration file. Every file in it is written atomically.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Error, Result};
use crate::{config::Config, db};

/// The directory, relative to the working directory.
pub const DIRECTORY: &str = "appferry-data";
/// The file with the administrator's token.
pub const TOKEN: &str = "admin-token";

/// The file of the SQLite database.
const DATABASE: &str = "state.db";
/// The write-ahead log of the database.
const LOG: &str = "state.db-wal";
/// The file that records that a database was created.
const MARKER: &str = "database-created";
/// The version of the directory's format. It is raised when older versions can't use the directory.
const FORMAT: &str = "1";
const HOME: &str = "cn-hangzhou";
const REGIONS: [&str; 4] = [HOME, "cn-shanghai", "cn-beijing", "cn-shenzhen"];
const ADMINISTRATOR: &str = "acs:ram::1:user/admin";

/// A data directory, locked against other processes.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    token: String,
    _lock: File,
}

impl DataDirectory {
    /// Opens and locks the directory. Creates it if it does not exist.
    pub fn open(path: &Path) -> Result<Self> {
        let context = |operation: &str| format!("failed to {operation} {}", path.display());
        make_directory(path).map_err(Error::local(context("create the data directory")))?;
        check_owner(path)?;
        let mut lock = OpenOptions::new();
        let lock = lock.write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"));
        let lock = lock.map_err(Error::local(context("lock")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::failed(format!("{} is in use by another appferry", path.display())));
            }
            Err(TryLockError::Error(error)) => return Err(Error::local(context("lock"))(error)),
        }
        check_format(path)?;
        check_database(path)?;
        for region in REGIONS {
            make_directory(&path.join("regions").join(region))
                .map_err(Error::local(context("create the regions in")))?;
        }
        check_owner(&path.join(TOKEN))?;
        let token = token(&path.join(TOKEN)).map_err(Error::local(context("read the administrator's token in")))?;
        Ok(Self { path: path.to_owned(), token, _lock: lock })
    }

    /// Returns the configuration of the directory, overridden by the environment.
    pub fn config(&self) -> Result<Config> {
        let token = format!("token_sha256 = \"{}\"\n", hex::encode(Sha256::digest(&self.token)));
        Config::parse(&(settings(&self.path) + &token)).map_err(Error::local("invalid configuration"))
    }

    /// Creates the database or migrates its schema, and records that the database was created. Returns the number of
    /// applied migrations.
    pub async fn migrate(&self, config: &Config) -> Result<usize> {
        let count =
            db::migrate(&config.database.settings()).await.map_err(Error::local("failed to migrate the database"))?;
        write_whole(&self.path.join(MARKER), "", 0o600)
            .map_err(Error::local("failed to record that the database was created"))?;
        Ok(count)
    }

    /// Returns the administrator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns the path of the file with the administrator's token.
    pub fn token_file(&self) -> PathBuf {
        self.path.join(TOKEN)
    }

    /// Returns the path of the directory with a region's images.
    pub fn region(&self, region: &str) -> PathBuf {
        self.path.join("regions").join(region)
    }
}

/// Returns the configuration of the directory at `path`, without the administrator's token: the stores and policies do
/// not need it.
pub fn config(path: &Path) -> Result<Config> {
    Config::parse(&settings(path)).map_err(Error::local("invalid configuration"))
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

/// Rejects a file or directory that another user owns or can write to, because that user could have put a token or a
/// database into it. Accepts a path that does not exist.
fn check_owner(path: &Path) -> Result<()> {
    let failed = || Error::local(format!("failed to check the owner of {}", path.display()));
    // Checks a symbolic link itself and its target.
    for metadata in [fs::symlink_metadata(path), fs::metadata(path)] {
        let metadata = match metadata {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.map_err(failed())?,
        };
        let (user, shown) = (rustix::process::geteuid().as_raw(), path.display());
        if metadata.uid() != user {
            let problem = format!(
                "{shown} belongs to user {}, and this process runs as user {user}: its content can't be trusted",
                metadata.uid()
            );
            return Err(Error::failed(problem).with_hint("run as the owner, or in another directory"));
        }
        if !metadata.is_symlink() && metadata.mode() & 0o022 != 0 {
            let problem = format!(
                "{shown} has mode {:04o}, so that other users can write to it: its content can't be trusted",
                metadata.mode() & 0o7777
            );
            let hint = format!("check that nothing in it is from another user, then run `chmod go-w {shown}`");
            return Err(Error::failed(problem).with_hint(hint));
        }
    }
    Ok(())
}

/// Rejects a directory with the format of another version. Without a format, the directory is new or its first start
/// was interrupted.
fn check_format(path: &Path) -> Result<()> {
    let file = path.join("format");
    let failed = || Error::local(format!("failed to read or write {}", file.display()));
    let format = read(&file).map_err(failed())?.unwrap_or_default();
    match format.trim() {
        "" => write_whole(&file, FORMAT, 0o600).map_err(failed()),
        FORMAT => Ok(()),
        other => Err(Error::failed(format!(
            "{} has the format {other:?} of another version of appferry; this version supports {FORMAT:?}",
            path.display(),
        ))
        .with_hint("run the version that wrote it, or use another directory")),
    }
}

/// Rejects a directory whose database was created before and is now missing or damaged: a new, empty database would
/// hide the loss.
fn check_database(path: &Path) -> Result<()> {
    let marker = path.join(MARKER);
    let database = path.join(DATABASE);
    let failed = || Error::local(format!("failed to read {}", database.display()));
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
        Some(problem) => Err(Error::failed(format!("{} {problem}, but was created before", database.display()))
            .with_hint(format!("restore it from a backup, or remove {} to start with an empty one", marker.display()))),
    }
}

/// Returns the damage that the length and the header of an SQLite file show
/// (<https://sqlite.org/fileformat2.html#the_database_header>).
fn damage(file: &File, log: &Path) -> io::Result<Option<&'static str>> {
    let length = file.metadata()?.len();
    let mut header = [0; 100];
    if length == 0 {
        return Ok(Some("is empty"));
    }
    if length < header.len() as u64 {
        return Ok(Some("is truncated"));
    }
    file.read_exact_at(&mut header, 0)?;
    if !header.starts_with(b"SQLite format 3\0") {
        return Ok(Some("is not an SQLite database"));
    }
    let page = match u64::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => 65_536,
        size => size,
    };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    // Until the next checkpoint, pages that are in the log may be missing in the file.
    let is_logged = fs::metadata(log).is_ok_and(|log| log.len() > 0);
    Ok((!is_logged && length < pages * page).then_some("is truncated"))
}

/// Reads the token, or creates one with mode 0600.
fn token(path: &Path) -> io::Result<String> {
    if let Some(token) = read(path)?.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()) {
        return Ok(token);
    }
    let token = hex::encode(rand::random::<[u8; 32]>());
    write_whole(path, &token, 0o600)?;
    Ok(token)
}

/// Reads a file. Returns `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file atomically: after a crash, it has either the complete new content or the old content.
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
    async fn an_interrupted_first_start_is_completed() {
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
    async fn a_missing_or_truncated_database_is_not_replaced_by_a_new_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        {
            let opened = DataDirectory::open(path).expect("it is new");
            opened.migrate(&opened.config().expect("a configuration")).await.expect("the schema");
        }
        let database = path.join(DATABASE);
        let whole = fs::read(&database).expect("a database");
        let refused = || DataDirectory::open(path).expect_err("damaged").report();
        for length in [0, 50, whole.len() / 2] {
            fs::write(&database, &whole[..length]).expect("it is written");
            let error = refused();
            let expected = if length == 0 { "is empty" } else { "is truncated" };
            assert!(error.contains(expected) && error.contains(MARKER), "{length}: {error}");
        }
        fs::write(&database, vec![0x5a; whole.len()]).expect("it is written");
        assert!(refused().contains("is not an SQLite database"), "{}", refused());
        fs::remove_file(&database).expect("it is there");
        assert!(refused().contains("is missing"), "{}", refused());
        fs::write(&database, &whole).expect("it is written");
        DataDirectory::open(path).expect("it is whole again");
        fs::remove_file(&database).and_then(|()| fs::remove_file(path.join(MARKER))).expect("they are there");
        DataDirectory::open(path).expect("it begins with an empty one");
    }
}
