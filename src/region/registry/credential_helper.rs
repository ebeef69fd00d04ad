//! Credential helpers: programs `docker-credential-NAME` that hand out a registry's credentials (docker's client, "Credential helper
//! protocol"). They are run directly, with the variables that they are given and no others, and bounded in time and output. What one
//! has handed out is kept until the registry refuses it, or for as long as such credentials have turned out to be good.

use std::{
    env,
    ffi::OsString,
    fmt,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::Mutex,
    time::timeout,
};

use super::{
    credentials::{Credentials, Error},
    learnt_life::LearntLife,
};
use crate::domain::ForeignText;

/// What the name of every helper begins with.
const PREFIX: &str = "docker-credential-";
/// The longest name, in bytes, without its beginning.
const MAX_NAME: usize = 64;
/// How long a helper may take: it may have to ask a service.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that it may write, in bytes.
const MAX_BYTES: u64 = 64 << 10;
/// Variables that every helper is given: where other programs are, and where its own settings are.
const ALWAYS: [&str; 2] = ["PATH", "HOME"];
/// The user name by which a helper says that the secret is an identity token (docker's client, `GetAuthConfig`).
const IDENTITY: &str = "<token>";
/// What a helper says that has no credentials for a registry (docker-credential-helpers, `errCredentialsNotFound`).
const NOT_FOUND: &str = "credentials not found in native keychain";
/// How long credentials are kept at most, while no registry has refused any.
const LONGEST_LIFE: Duration = Duration::from_secs(300);

/// A helper program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// One of the directories of `PATH` has it, under its name.
    Named(String),
    /// It is exactly there.
    At(PathBuf),
}

/// Why a text names no helper.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no credential helper; expected the NAME of a program docker-credential-NAME, or a program's absolute path"
)]
pub struct ProgramError(ForeignText);

impl Program {
    /// The program of a name: letters, digits, '.', '_' and '-', so that it leads to no other place.
    pub fn named(name: &str) -> Result<Self, ProgramError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fits) {
            Ok(Self::Named(format!("{PREFIX}{name}")))
        } else {
            Err(ProgramError(ForeignText::value(name)))
        }
    }

    /// The file that is run, among `directories`, which are written as `PATH` has them.
    pub fn find(&self, directories: Option<OsString>) -> Result<PathBuf, HelperError> {
        let is_program = |path: &Path| {
            std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let found = match self {
            Self::At(path) => Some(path.clone()).filter(|path| is_program(path)),
            Self::Named(name) => {
                let directories = directories.unwrap_or_default();
                env::split_paths(&directories).map(|directory| directory.join(name)).find(|path| is_program(path))
            }
        };
        found.ok_or_else(|| HelperError::NoProgram(self.clone()))
    }
}

impl FromStr for Program {
    type Err = ProgramError;

    fn from_str(text: &str) -> Result<Self, ProgramError> {
        if text.starts_with('/') { Ok(Self::At(text.into())) } else { Self::named(text) }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::At(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why a helper hands out no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// There is no such program.
    #[error(
        "there is no program {0}{why}; install it where the service runs",
        why = if matches!(.0, Program::Named(_)) { " in the directories of PATH" } else { "" }
    )]
    NoProgram(Program),
    /// It knows nothing of the registry.
    #[error(
        "{program} has no credentials for {server}; log in to it with that helper, as the user that the service runs as"
    )]
    Missing {
        /// The helper.
        program: Program,
        /// The registry.
        server: String,
    },
    /// It ran, and failed.
    #[error("{program} failed for {server}: {said}; the variables that it needs are those of credential_helper_env")]
    Failed {
        /// The helper.
        program: Program,
        /// The registry.
        server: String,
        /// What it said, or how it ended.
        said: ForeignText,
    },
    /// It could not be run, took too long, or said something else than credentials.
    #[error("{program} for {server}: {problem}")]
    Unusable {
        /// The helper.
        program: Program,
        /// The registry.
        server: String,
        /// What is wrong.
        problem: String,
    },
}

impl HelperError {
    /// Whether it may go better later by itself: most helpers ask services.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::NoProgram(_) | Self::Missing { .. })
    }
}

/// A helper and what it is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// The program.
    pub program: Program,
    /// The registry, as the helper knows it.
    pub server: String,
    /// Variables of this process that it is given beside `PATH` and `HOME`.
    pub environment: Vec<String>,
}

/// What a helper says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helper {
    /// Runs the helper, once.
    async fn ask(&self) -> Result<Credentials, HelperError> {
        let path = self.program.find(env::var_os("PATH"))?;
        let passed = ALWAYS.into_iter().chain(self.environment.iter().map(String::as_str));
        let mut command = Command::new(path);
        command
            .arg("get")
            .env_clear()
            .envs(passed.filter_map(|name| Some((name, env::var_os(name)?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| self.unusable(format!("it can't be run: {error}")))?;
        let mut group = Group(child);
        let asked = timeout(PATIENCE, group.converse(&self.server)).await;
        let took_too_long = || self.unusable(format!("it took longer than {} s", PATIENCE.as_secs()));
        let (succeeded, output) =
            asked.map_err(|_| took_too_long())?.map_err(|error| self.unusable(error.to_string()))?;
        if output.len() as u64 > MAX_BYTES {
            return Err(self.unusable(format!("it wrote more than {MAX_BYTES} bytes")));
        }
        if !succeeded {
            let said = String::from_utf8_lossy(&output);
            return Err(self.failed(said.trim()));
        }
        // What it wrote is never told: it may hold the secret.
        let answer: Answer = serde_json::from_slice(&output)
            .map_err(|_| self.unusable("what it wrote is not the JSON of credentials".to_owned()))?;
        match answer {
            Answer { username, secret } if username == IDENTITY => Ok(Credentials::Identity(secret)),
            Answer { username, secret } => Ok(Credentials::Password { username, password: secret }),
        }
    }

    fn failed(&self, said: &str) -> HelperError {
        let (program, server) = (self.program.clone(), self.server.clone());
        if said == NOT_FOUND {
            return HelperError::Missing { program, server };
        }
        let said = if said.is_empty() { "it said nothing" } else { said };
        HelperError::Failed { program, server, said: ForeignText::new(said) }
    }

    fn unusable(&self, problem: String) -> HelperError {
        HelperError::Unusable { program: self.program.clone(), server: self.server.clone(), problem }
    }
}

/// A program and whatever it has started. All of it ends with this.
struct Group(Child);

impl Group {
    /// Tells it a registry, and takes what it writes until it has ended. Returns whether it succeeded.
    async fn converse(&mut self, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
        if let Some(mut input) = self.0.stdin.take() {
            // One that does not want to know it says so by how it ends.
            let _ = input.write_all(server.as_bytes()).await;
        }
        let output = match self.0.stdout.take() {
            Some(output) => bounded(output).await?,
            None => Vec::new(),
        };
        if output.len() as u64 > MAX_BYTES {
            return Ok((false, output));
        }
        Ok((self.0.wait().await?.success(), output))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Only of one that has not been waited for is the number certainly its own.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn bounded(output: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    output.take(MAX_BYTES + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What a helper has handed out last.
#[derive(Debug, Default)]
pub struct HelperCache(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: Option<Handed>,
    /// For how long credentials are good.
    life: LearntLife,
}

#[derive(Debug, Clone)]
struct Handed {
    by: Helper,
    outcome: Result<Credentials, HelperError>,
    at: Instant,
    /// Their age when they were refused.
    refused_at: Option<Duration>,
}

impl Kept {
    /// What is known of a helper's credentials and still good now, for somebody who asked at some time before. That a helper fails is only
    /// for those to know who have waited for it.
    fn good(&self, helper: &Helper, asked: Instant, now: Instant) -> Option<&Handed> {
        let last = self.last.as_ref().filter(|handed| handed.by == *helper && handed.refused_at.is_none())?;
        let is_good = match last.outcome {
            Ok(_) => now.duration_since(last.at) < self.life.bounding(LONGEST_LIFE),
            Err(_) => asked < last.at,
        };
        is_good.then_some(last)
    }

    /// Keeps what a helper handed out. Where it differs from what was refused, that had ended, and was not just wrong.
    fn keep(&mut self, handed: Handed) {
        if let Some(Handed { outcome: Ok(old), refused_at: Some(age), by, .. }) = &self.last
            && *by == handed.by
            && handed.outcome.as_ref().is_ok_and(|new| new != old)
        {
            self.life.learn(*age);
        }
        self.last = Some(handed);
    }
}

impl HelperCache {
    /// The credentials that a helper hands out. While it is asked, all others wait for the same answer.
    pub async fn get(&self, helper: &Helper) -> Result<Credentials, Error> {
        let asked = Instant::now();
        let mut kept = self.0.lock().await;
        if let Some(handed) = kept.good(helper, asked, Instant::now()) {
            return Ok(handed.outcome.clone()?);
        }
        let outcome = helper.ask().await;
        kept.keep(Handed { by: helper.clone(), outcome: outcome.clone(), at: Instant::now(), refused_at: None });
        Ok(outcome?)
    }

    /// Throws credentials away that were refused, unless there are others already.
    pub async fn drop_refused(&self, refused: &Credentials) {
        if let Some(handed) = &mut self.0.lock().await.last
            && handed.outcome.as_ref() == Ok(refused)
        {
            handed.refused_at.get_or_insert(handed.at.elapsed());
        }
    }
}

#[cfg(test)]
mod tests;
