//! Credentials of a registry and their sources: the configuration, a file, a docker `config.json`, or a credential
//! helper. Sources that can change are read again on every use.

use std::{fmt, path::PathBuf};

use super::{
    credential_helper::{Helper, HelperCache, HelperError},
    docker_config::{self, DockerConfigError, Entry, RegistryKey},
};
use crate::{ProfileError, SecretFileError, SecretSource};

/// Credentials for a registry. Their `Debug` output omits the secrets.
#[derive(Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Credentials {
    /// No credentials.
    #[default]
    Anonymous,
    /// A user name and a password.
    Password {
        username: String,
        /// The password or an access token.
        password: String,
    },
    /// A refresh token that is exchanged for access tokens (Docker's "identity token").
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

/// Why credentials are unavailable. The text never contains the content of a file or the output of a helper.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A password file can't be used.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// A credentials file can't be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A docker `config.json` can't be used.
    #[error(transparent)]
    DockerConfig(#[from] DockerConfigError),
    /// A credential helper returned no credentials.
    #[error(transparent)]
    Helper(#[from] HelperError),
}

impl Error {
    /// Returns whether a retry may succeed without a change of the configuration, because files may be replaced and the
    /// services that helpers call may recover.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::File(_) | Self::Profile(_) => true,
            Self::DockerConfig(error) => error.is_transient(),
            Self::Helper(error) => error.is_transient(),
        }
    }
}

/// Source of a registry's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum CredentialSource {
    /// Credentials that never change.
    Fixed(Credentials),
    /// A user name with a password that may change.
    Password {
        username: String,
        /// Where the password is read from.
        password: SecretSource,
    },
    /// A docker `config.json`, which may refer to a helper.
    DockerConfig {
        path: PathBuf,
        /// Selects the entry of the file.
        registry: RegistryKey,
        /// Names of additional environment variables that are passed to a helper.
        environment: Vec<String>,
    },
    Helper(Helper),
}

/// Provides the current credentials of one registry.
#[derive(Debug)]
pub struct CredentialProvider {
    source: CredentialSource,
    helped: HelperCache,
}

impl From<Credentials> for CredentialProvider {
    fn from(credentials: Credentials) -> Self {
        CredentialSource::Fixed(credentials).into()
    }
}

impl From<CredentialSource> for CredentialProvider {
    fn from(source: CredentialSource) -> Self {
        Self { source, helped: HelperCache::default() }
    }
}

impl CredentialProvider {
    /// Returns whether the source never has credentials.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.source == CredentialSource::Fixed(Credentials::Anonymous)
    }

    /// Returns the current credentials.
    pub async fn current(&self) -> Result<Credentials, Error> {
        match &self.source {
            CredentialSource::Fixed(credentials) => Ok(credentials.clone()),
            CredentialSource::Password { username, password } => {
                let password = password.read().await?.0;
                Ok(Credentials::Password { username: username.clone(), password })
            }
            CredentialSource::DockerConfig { path, registry, environment } => {
                match docker_config::read(path, registry).await? {
                    Entry::Given(credentials) => Ok(credentials),
                    Entry::Helped { program, server } => {
                        self.helped.get(&Helper { program, server, environment: environment.clone() }).await
                    }
                }
            }
            CredentialSource::Helper(helper) => self.helped.get(helper).await,
        }
    }

    /// Drops rejected credentials from the cache. Returns whether the current credentials differ from them.
    pub async fn renew(&self, refused: &Credentials) -> Result<bool, Error> {
        self.helped.drop_refused(refused).await;
        Ok(self.current().await? != *refused)
    }
}

#[cfg(test)]
mod tests {
    use super::{CredentialProvider, CredentialSource, Credentials};
    use crate::secret_file::SecretSource;

    #[tokio::test]
    async fn a_password_is_read_again_when_it_is_needed() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let write = |password: &str| std::fs::write(file.path(), password).expect("a file");
        let source =
            CredentialSource::Password { username: "bob".into(), password: SecretSource::File(file.path().into()) };
        let provider = CredentialProvider::from(source);
        let password = |password: &str| Credentials::Password { username: "bob".into(), password: password.into() };
        write("first-one\n");
        let one = provider.current().await.expect("a password");
        assert_eq!(one, password("first-one"));
        assert_eq!(provider.renew(&one).await, Ok(false), "there is no other one");
        write("two\r\n");
        assert_eq!(provider.renew(&one).await, Ok(true));
        assert_eq!(provider.current().await, Ok(password("two")));
        write("\n");
        let error = provider.current().await.expect_err("it is empty");
        assert!(error.is_transient() && error.to_string().ends_with("is empty"), "{error}");
        assert_eq!(format!("{one:?} {provider:?}").matches("first-one").count(), 0);
    }
}
