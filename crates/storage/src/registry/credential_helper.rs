//! Credential helpers: programs `docker-credential-NAME` that return the credentials of a registry (docker's client,
//! "Credential helper protocol"). They run without a shell, with an explicit set of environment variables, and with
//! limits of time and output. Their credentials are cached until the registry rejects them, or for the lifetime learned
//! from earlier rejections.

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

use domain::ForeignText;
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

/// Prefix of the name of every helper.
const PREFIX: &str = "docker-credential-";
/// Maximum length of a name without the prefix, in bytes.
const MAX_NAME: usize = 64;
/// Timeout of a helper, which may have to call a service.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum size of a helper's output, in bytes.
const MAX_BYTES: u64 = 64 << 10;
/// Variables that every helper receives: the path of programs, and the directory of its settings.
const ALWAYS: [&str; 2] = ["PATH", "HOME"];
/// User name that marks the secret as an identity token (docker's client, `GetAuthConfig`).
const IDENTITY: &str = "<token>";
/// Output of a helper without credentials for a registry (docker-credential-helpers, `errCredentialsNotFound`).
const NOT_FOUND: &str = "credentials not found in native keychain";
/// Longest time that credentials are cached, while no registry has rejected any.
const LONGEST_LIFE: Duration = Duration::from_secs(300);

/// A helper program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A file name that is searched in the directories of `PATH`.
    Named(String),
    /// An absolute path.
    At(PathBuf),
}

/// The error for a text that is not a valid name of a helper.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no credential helper; expected the NAME of a program docker-credential-NAME, or a program's absolute path"
)]
pub struct ProgramError(ForeignText);

impl Program {
    /// Returns the program called `docker-credential-NAME`. Accepts only letters, digits, '.', '_' and '-' in the name,
    /// so that it can't refer to another directory.
    pub fn named(name: &str) -> Result<Self, ProgramError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fits) {
            Ok(Self::Named(format!("{PREFIX}{name}")))
        } else {
            Err(ProgramError(ForeignText::value(name)))
        }
    }

    /// Finds the executable file in `directories`, which have the format of `PATH`.
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

/// Why a helper returned no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum HelperError {
    /// There is no such executable file.
    #[error(
        "there is no program {0}{why}; install it where the service runs",
        why = if matches!(.0, Program::Named(_)) { " in the directories of PATH" } else { "" }
    )]
    NoProgram(Program),
    /// The helper has no credentials for the registry.
    #[error(
        "{program} has no credentials for {server}; log in to it with that helper, as the user that the service runs as"
    )]
    Missing {
        program: Program,
        /// The key under which the helper stores the registry.
        server: String,
    },
    /// The helper exited with an error.
    #[error("{program} failed for {server}: {said}; the variables that it needs are those of credential_helper_env")]
    Failed {
        program: Program,
        /// The key under which the helper stores the registry.
        server: String,
        /// The output of the helper.
        said: ForeignText,
    },
    /// The helper could not be run, timed out, or wrote no valid credentials.
    #[error("{program} for {server}: {problem}")]
    Unusable {
        program: Program,
        /// The key under which the helper stores the registry.
        server: String,
        problem: String,
    },
}

impl HelperError {
    /// Returns whether a retry may succeed. Most helpers call services, which may fail temporarily.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::NoProgram(_) | Self::Missing { .. })
    }
}

/// A helper and the registry to query.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Helper {
    pub program: Program,
    /// The key under which the helper stores the registry.
    pub server: String,
    /// Names of the environment variables that the helper receives in addition to `PATH` and `HOME`.
    pub environment: Vec<String>,
}

/// Output of a helper.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helper {
    /// Runs the helper once.
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
        // Errors never quote the output, because it may contain the secret.
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

/// A program and its descendants in one process group. Dropping the group kills them.
struct Group(Child);

impl Group {
    /// Writes the key of a registry to the program, and reads the output until the program ends. Returns whether the
    /// program succeeded, and its output.
    async fn converse(&mut self, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
        if let Some(mut input) = self.0.stdin.take() {
            // A helper that does not read its input reports the error by its exit status.
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
        // The process id is reliable only until the process has been waited for.
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

/// The last result of a helper.
#[derive(Debug, Default)]
pub struct HelperCache(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: Option<Handed>,
    /// Learned lifetime of credentials.
    life: LearntLife,
}

#[derive(Debug, Clone)]
struct Handed {
    by: Helper,
    outcome: Result<Credentials, HelperError>,
    at: Instant,
    /// Age of the credentials when the registry rejected them.
    refused_at: Option<Duration>,
}

impl Kept {
    /// Returns the last result, if it is still valid at `now` for a caller that started at `asked`. Only callers that
    /// waited for a failed run share its error.
    fn good(&self, helper: &Helper, asked: Instant, now: Instant) -> Option<&Handed> {
        let last = self.last.as_ref().filter(|handed| handed.by == *helper && handed.refused_at.is_none())?;
        let is_good = match last.outcome {
            Ok(_) => now.duration_since(last.at) < self.life.bounding(LONGEST_LIFE),
            Err(_) => asked < last.at,
        };
        is_good.then_some(last)
    }

    /// Stores a result. If it differs from rejected credentials, those had expired, so their age caps the lifetime.
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
    /// Returns the credentials of a helper. Concurrent callers share one run.
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

    /// Marks the cached credentials as rejected, unless newer ones have replaced them.
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
