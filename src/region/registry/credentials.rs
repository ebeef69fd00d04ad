//! What a registry is shown, and where that comes from: the configuration, a file, a docker `config.json`, or a credential helper. What
//! can change is looked up again whenever it is needed.

use std::{fmt, path::PathBuf};

use super::{
    credential_helper::{Helper, HelperCache, HelperError},
    docker_config::{self, DockerConfigError, Entry, RegistryKey},
};
use crate::region::{ProfileError, SecretFileError, SecretSource};

/// What a registry is shown. Never printed.
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

/// Why there are no credentials. What stands in a file, and what a helper hands out, is never part of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file with a password can't be used.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// A credentials file can't be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A docker `config.json` can't be used.
    #[error(transparent)]
    DockerConfig(#[from] DockerConfigError),
    /// A credential helper hands out none.
    #[error(transparent)]
    Helper(#[from] HelperError),
}

impl Error {
    /// Whether asking again later may help without anybody changing the configuration: files are replaced, helpers ask services.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::File(_) | Self::Profile(_) => true,
            Self::DockerConfig(error) => error.is_transient(),
            Self::Helper(error) => error.is_transient(),
        }
    }
}

/// Where a registry's credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// They are always the same.
    Fixed(Credentials),
    /// A name, and a password that may change.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: SecretSource,
    },
    /// A docker `config.json`, which may name a helper.
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// Which of its entries.
        registry: RegistryKey,
        /// Variables that a helper which it names is given.
        environment: Vec<String>,
    },
    /// A credential helper.
    Helper(Helper),
}

/// The credentials of one registry, as they are at the moment.
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
    /// Whether there are none, now and ever.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.source == CredentialSource::Fixed(Credentials::Anonymous)
    }

    /// The credentials to show now.
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

    /// Whether there are others by now than those that the registry has refused.
    pub async fn renew(&self, refused: &Credentials) -> Result<bool, Error> {
        self.helped.drop_refused(refused).await;
        Ok(self.current().await? != *refused)
    }
}

#[cfg(test)]
mod tests {
    use super::{CredentialProvider, CredentialSource, Credentials};
    use crate::region::secret_file::SecretSource;

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
