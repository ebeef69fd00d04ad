//! Reads the `config.json` of docker, podman, skopeo or crane, which has the credentials of registries, or names the
//! helper programs that store them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    credential_helper::{Program, ProgramError},
    credentials::Credentials,
};
use crate::{
    RegistryLocation,
    secret_file::{self, SecretFileError},
};

/// Maximum size of a `config.json`, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Key of Docker Hub in a `config.json` and for helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Why a `config.json` yields no credentials. The text never quotes the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DockerConfigError {
    /// The file can't be read.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The file does not have the format of `docker login`.
    #[error("{} is no docker config.json", .0.display())]
    Form(PathBuf),
    /// The file contains an invalid name of a helper.
    #[error("{}: {problem}", path.display())]
    Helper { path: PathBuf, problem: ProgramError },
    /// The file has no entry for the registry.
    #[error("{path} has no credentials for {host}; put them there by `skopeo login --authfile {path} {host}`, or as docker does", path = path.display())]
    Missing {
        path: PathBuf,
        /// The host of the registry, with the port unless it is the default.
        host: String,
    },
}

impl DockerConfigError {
    /// Returns whether a retry may succeed, because another process may be writing the file.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::File(_) | Self::Form(_))
    }
}

/// The entry of a registry in `config.json`.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Entry {
    /// Credentials in the file itself.
    Given(Credentials),
    /// A program that stores the credentials.
    Helped {
        program: Program,
        /// The key under which the helper stores the registry.
        server: String,
    },
}

/// Selects the entry of a region's registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryKey(RegistryLocation);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(rename = "auth")]
    basic: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl From<&RegistryLocation> for RegistryKey {
    fn from(location: &RegistryLocation) -> Self {
        Self(location.clone())
    }
}

impl RegistryKey {
    /// Returns how specifically a key of the file matches the registry: the length of the path in the key, which podman
    /// allows. Returns `None` if the key is for another registry or path. Ignores schemes, letter case and default
    /// ports.
    fn matched_by(&self, key: &str) -> Option<usize> {
        let key = key.split_once("://").map_or(key, |(_, rest)| rest);
        let (host, path) = key.split_once('/').unwrap_or((key, ""));
        let is_hub = self.is_docker_hub() && matches!(host, "index.docker.io" | "docker.io");
        if !self.0.is_at(host) && !is_hub {
            return None;
        }
        match path.trim_end_matches('/') {
            "" | "v1" | "v2" => Some(0),
            path => {
                let rest = self.0.namespace.strip_prefix(path)?;
                (rest.is_empty() || rest.starts_with('/')).then_some(path.len())
            }
        }
    }

    /// Returns the entry with the most specific key.
    fn find<'a, T>(&self, entries: &'a BTreeMap<String, T>) -> Option<&'a T> {
        let matching = entries.iter().filter_map(|(key, entry)| Some((self.matched_by(key)?, entry)));
        matching.max_by_key(|(matched, _)| *matched).map(|(_, entry)| entry)
    }

    fn is_docker_hub(&self) -> bool {
        self.0.authority() == "registry-1.docker.io"
    }

    /// Returns the key of the registry for helpers: its host, except for Docker Hub (as docker's client does).
    #[must_use]
    pub fn server(&self) -> String {
        if self.is_docker_hub() { DOCKER_HUB.to_owned() } else { self.0.authority() }
    }
}

/// Reads the current entry of a registry.
pub async fn read(path: &Path, registry: &RegistryKey) -> Result<Entry, DockerConfigError> {
    look_up(path, &secret_file::read(path, MAX_BYTES).await?, registry)
}

/// Reads the current entry of a registry. Blocks the thread.
pub fn read_now(path: &Path, registry: &RegistryKey) -> Result<Entry, DockerConfigError> {
    look_up(path, &secret_file::read_now(path, MAX_BYTES)?, registry)
}

/// Finds the entry of a registry. A helper for this registry takes precedence over credentials in the file, which take
/// precedence over the default helper (docker's client, "Credential helpers").
fn look_up(path: &Path, text: &str, registry: &RegistryKey) -> Result<Entry, DockerConfigError> {
    let form = || DockerConfigError::Form(path.to_owned());
    let config: DockerConfig = serde_json::from_str(text).map_err(|_| form())?;
    let auth = registry.find(&config.auths).filter(|auth| !auth.is_empty());
    let helper = registry.find(&config.cred_helpers);
    let store = config.creds_store.as_ref().filter(|store| auth.is_none() && !store.is_empty());
    if let Some(name) = helper.or(store) {
        let program =
            Program::named(name).map_err(|problem| DockerConfigError::Helper { path: path.to_owned(), problem })?;
        return Ok(Entry::Helped { program, server: registry.server() });
    }
    let missing = || DockerConfigError::Missing { path: path.to_owned(), host: registry.0.authority() };
    auth.ok_or_else(missing)?.read().map(Entry::Given).ok_or_else(form)
}

impl Auth {
    /// Returns whether the entry is empty, as docker leaves it for credentials that a helper stores.
    fn is_empty(&self) -> bool {
        let parts = [&self.basic, &self.username, &self.password, &self.identitytoken];
        parts.into_iter().flatten().all(String::is_empty)
    }

    fn read(&self) -> Option<Credentials> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Some(Credentials::Identity(token.clone()));
        }
        let (username, password) = match self.basic.as_ref().filter(|basic| !basic.is_empty()) {
            Some(basic) => {
                let text = String::from_utf8(STANDARD.decode(basic).ok()?).ok()?;
                let (username, password) = text.split_once(':')?;
                (username.to_owned(), password.to_owned())
            }
            None => (self.username.clone()?, self.password.clone()?),
        };
        Some(Credentials::Password { username, password })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Credentials, DockerConfigError, Entry, Program, RegistryKey, look_up};
    use crate::Location;

    fn key(store: &str) -> RegistryKey {
        match store.parse() {
            Ok(Location::Registry(location)) => (&location).into(),
            other => panic!("{store}: {other:?}"),
        }
    }

    fn password(username: &str, password: &str) -> Entry {
        Entry::Given(Credentials::Password { username: username.into(), password: password.into() })
    }

    #[test]
    fn what_docker_login_and_its_kin_write_is_read() {
        let config = r#"{
            "auths": {
                "https://one.example/v1/": { "auth": "Ym9iOnNlOmNyZXQ=" },
                "two.example:5000": { "username": "al", "password": "pw" },
                "three.example": { "auth": "Ym9iOng=", "identitytoken": "tok" },
                "https://index.docker.io/v1/": { "auth": "aHViOng=" },
                "Four.Example:443": { "auth": "Ym9iOng=" },
                "five.example/apps": { "auth": "YXBwczp4" },
                "five.example/apps/hpc": { "auth": "aHBjOng=" },
                "broken.example": { "auth": "%%%" }
            }
        }"#;
        let read = |host: &str| look_up(Path::new("c"), config, &key(&format!("registry+https://{host}")));
        assert_eq!(read("one.example"), Ok(password("bob", "se:cret")));
        assert_eq!(read("two.example:5000"), Ok(password("al", "pw")));
        assert_eq!(read("three.example"), Ok(Entry::Given(Credentials::Identity("tok".into()))));
        assert_eq!(read("registry-1.docker.io/x"), Ok(password("hub", "x")));
        assert_eq!(read("four.example"), Ok(password("bob", "x")));
        assert_eq!(read("five.example/apps/hpc/more"), Ok(password("hpc", "x")));
        assert_eq!(read("five.example/apps/hpc2"), Ok(password("apps", "x")));
        for missing in ["two.example", "five.example/other", "four.example:5000"] {
            assert!(matches!(read(missing), Err(DockerConfigError::Missing { .. })), "{missing}");
        }
        assert!(matches!(read("broken.example"), Err(DockerConfigError::Form(_))));
    }

    #[test]
    fn a_helper_is_found_where_docker_would_ask_it() {
        let config = r#"{
            "auths": { "one.example": {}, "two.example": { "auth": "Ym9iOng=" }, "three.example": { "auth": "Ym9iOng=" } },
            "credHelpers": { "two.example": "ecr-login", "bad.example": "../../bin/sh" },
            "credsStore": "pass"
        }"#;
        let read = |host: &str| look_up(Path::new("c"), config, &key(&format!("registry+https://{host}")));
        let helped = |program: &str, server: &str| {
            let program = Program::named(program).expect("a program");
            Ok(Entry::Helped { program, server: server.into() })
        };
        assert_eq!(read("one.example"), helped("pass", "one.example"));
        assert_eq!(read("two.example"), helped("ecr-login", "two.example"));
        assert_eq!(read("three.example"), Ok(password("bob", "x")));
        assert_eq!(read("registry-1.docker.io"), helped("pass", "https://index.docker.io/v1/"));
        assert!(matches!(read("bad.example"), Err(DockerConfigError::Helper { .. })));
    }
}
