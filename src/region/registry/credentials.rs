//! What a registry is told about who asks: from the configuration, or from a `config.json` as docker, podman and skopeo keep it.

use std::{collections::BTreeMap, fmt, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// The largest `config.json` that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What a registry is told. Never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// A name and a password.
    Password {
        /// The name.
        username: String,
        /// The password, or an access token in its place.
        password: String,
    },
    /// A token that others are got for (the Docker registry's "identity token").
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password(..)",
            Self::Identity(_) => "Identity(..)",
        })
    }
}

/// Why no credentials can be taken from a file. What stands in the file is not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("{path} can't be read: {problem}")]
    File {
        /// The file.
        path: String,
        /// What the operating system said.
        problem: String,
    },
    /// It is not what `docker login` writes.
    #[error("{0} is no docker config.json")]
    Form(String),
    /// It keeps them elsewhere.
    #[error(
        "{path} keeps the credentials of {host} with a helper program, which is not run; use username and password_file"
    )]
    Helper {
        /// The file.
        path: String,
        /// The registry.
        host: String,
    },
    /// It has none.
    #[error("{path} has no credentials for {host}")]
    Missing {
        /// The file.
        path: String,
        /// The registry.
        host: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
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

impl Credentials {
    /// What a docker `config.json` has for a registry, by its host and port.
    pub fn from_docker_config(path: &Path, host: &str) -> Result<Self, Error> {
        let shown = || path.display().to_string();
        let unreadable = |problem: std::io::Error| Error::File { path: shown(), problem: problem.to_string() };
        if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
            return Err(Error::Form(shown()));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let config: DockerConfig = serde_json::from_str(&text).map_err(|_| Error::Form(shown()))?;
        // Docker Hub's entry bears its old address.
        let aliases: &[&str] = if host == "registry-1.docker.io" { &["index.docker.io", "docker.io"] } else { &[] };
        let wanted = |key: &str| {
            let key = key.trim_start_matches("https://").trim_start_matches("http://");
            let key = key.split('/').next().unwrap_or_default();
            key == host || aliases.contains(&key)
        };
        let Some((_, auth)) = config.auths.iter().find(|(key, _)| wanted(key)) else {
            let helped = config.creds_store.is_some() || config.cred_helpers.keys().any(|key| wanted(key));
            let (path, host) = (shown(), host.to_owned());
            return Err(if helped { Error::Helper { path, host } } else { Error::Missing { path, host } });
        };
        auth.read().ok_or_else(|| Error::Form(shown()))
    }
}

impl Auth {
    fn read(&self) -> Option<Credentials> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Some(Credentials::Identity(token.clone()));
        }
        let (username, password) = match &self.basic {
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
    use super::{Credentials, Error};

    #[test]
    fn what_docker_login_and_its_kin_write_is_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let config = r#"{
            "auths": {
                "https://one.example/v1/": { "auth": "Ym9iOnNlOmNyZXQ=" },
                "two.example:5000": { "username": "al", "password": "pw" },
                "three.example": { "auth": "Ym9iOng=", "identitytoken": "tok" },
                "https://index.docker.io/v1/": { "auth": "aHViOng=" },
                "broken.example": { "auth": "%%%" }
            },
            "credHelpers": { "helped.example": "ecr-login" }
        }"#;
        std::fs::write(file.path(), config).expect("a file");
        let read = |host| Credentials::from_docker_config(file.path(), host);
        let password = |username: &str, password: &str| Credentials::Password {
            username: username.into(),
            password: password.into(),
        };
        assert_eq!(read("one.example"), Ok(password("bob", "se:cret")));
        assert_eq!(read("two.example:5000"), Ok(password("al", "pw")));
        assert_eq!(read("three.example"), Ok(Credentials::Identity("tok".into())));
        assert_eq!(read("registry-1.docker.io"), Ok(password("hub", "x")));
        assert!(matches!(read("broken.example"), Err(Error::Form(_))));
        assert!(matches!(read("helped.example"), Err(Error::Helper { .. })));
        assert!(matches!(read("two.example"), Err(Error::Missing { .. })));
        assert_eq!(format!("{:?}", password("bob", "secret")), "Password(..)");
    }
}
