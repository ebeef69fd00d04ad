//! The credentials of regions. Checks that the keys of `[[region]]` fit together, and that the files and programs that
//! they name exist.

use std::path::Path;

use super::{
    Error,
    region::{Checksum, Region, read_file},
    secret_source,
};
use crate::storage::{
    AccessKeys, CredentialSource, Credentials, DockerEntry, Helper, Program, Provider, RegistryKey, RegistryLocation,
    S3Profile, read_docker_config,
};

impl Region {
    /// Returns the credentials of a registry. Only one kind of credentials may be configured.
    pub(super) fn credentials(&self, index: usize, location: &RegistryLocation) -> Result<CredentialSource, Error> {
        let keys = ["password_env", "password_file"].map(|key| format!("region[{index}].{key}"));
        let password = secret_source([&keys[0], &keys[1]], self.password_env.as_ref(), self.password_file.as_ref())?;
        if !self.credential_helper_env.is_empty() && self.credential_helper.is_none() && self.docker_config.is_none() {
            let problem = "needs credential_helper, or a docker_config that names one";
            return Self::refuse(index, "credential_helper_env", problem);
        }
        match (&self.username, password, &self.docker_config, &self.credential_helper) {
            (None, None, None, None) => Ok(CredentialSource::Fixed(Credentials::Anonymous)),
            (Some(username), Some(password), None, None) => {
                Ok(CredentialSource::Password { username: username.clone(), password })
            }
            (None, None, Some(file), None) => self.docker_config(index, file, location),
            (None, None, None, Some(name)) => {
                let program: Program = name.parse().or_else(|error| Self::refuse(index, "credential_helper", error))?;
                program
                    .find(std::env::var_os("PATH"))
                    .or_else(|error| Self::refuse(index, "credential_helper", error))?;
                let environment = self.credential_helper_env.clone();
                Ok(CredentialSource::Helper(Helper {
                    program,
                    server: RegistryKey::from(location).server(),
                    environment,
                }))
            }
            (Some(_), None, None, None) => {
                Self::refuse(index, "username", "needs a password; set password_env or password_file")
            }
            (None, Some(_), None, None) => Self::refuse(index, "username", "needed, because a password is set"),
            (_, _, None, Some(_)) => {
                Self::refuse(index, "credential_helper", "a username or a password is set as well; remove one of them")
            }
            (_, _, Some(_), None) => {
                Self::refuse(index, "docker_config", "a username or a password is set as well; remove one of them")
            }
            (_, _, Some(_), Some(_)) => Self::refuse(
                index,
                "credential_helper",
                "docker_config is set as well, which can name a helper itself; remove one of them",
            ),
        }
    }

    /// Returns a docker configuration as the source of credentials. It must already have an entry for the registry. The
    /// entry is read whenever it is needed.
    fn docker_config(&self, index: usize, path: &Path, location: &RegistryLocation) -> Result<CredentialSource, Error> {
        let registry = RegistryKey::from(location);
        let entry = read_docker_config(path, &registry).or_else(|error| Self::refuse(index, "docker_config", error))?;
        if let DockerEntry::Helped { program, .. } = entry {
            program.find(std::env::var_os("PATH")).or_else(|error| Self::refuse(index, "docker_config", error))?;
        }
        Ok(CredentialSource::DockerConfig {
            path: path.to_owned(),
            registry,
            environment: self.credential_helper_env.clone(),
        })
    }

    /// Returns the credentials of a bucket. Only one kind of credentials may be configured, which the provider must
    /// support.
    pub(super) fn access_keys(&self, index: usize, provider: Provider) -> Result<AccessKeys, Error> {
        let keys = ["secret_access_key_env", "secret_access_key_file"].map(|key| format!("region[{index}].{key}"));
        let (variable, file) = (self.secret_access_key_env.as_ref(), self.secret_access_key_file.as_ref());
        let secret = secret_source([&keys[0], &keys[1]], variable, file)?;
        if self.access_key_id.is_some() != secret.is_some() {
            let problem = "set it and its secret (secret_access_key_env or secret_access_key_file) together";
            return Self::refuse(index, "access_key_id", problem);
        }
        let of_one_provider = [
            ("service_account_file", self.service_account_file.is_some(), Provider::Gcs),
            ("credentials_file", self.credentials_file.is_some(), Provider::S3),
            ("profile", self.profile.is_some(), Provider::S3),
            ("checksum", self.checksum != Checksum::Sha256, Provider::S3),
        ];
        if let Some((key, _, of)) = of_one_provider.iter().find(|(_, is_set, of)| *is_set && *of != provider) {
            return Self::refuse(index, key, format!("applies to {}:// stores only; remove it", of.scheme()));
        }
        if self.profile.is_some() && self.credentials_file.is_none() {
            return Self::refuse(index, "profile", "needs credentials_file");
        }
        let kinds = [
            ("access_key_id", self.access_key_id.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
            ("service_account_file", self.service_account_file.is_some()),
            ("anonymous", self.anonymous),
        ];
        let kinds: Vec<&str> = kinds.iter().filter_map(|(key, is_set)| is_set.then_some(*key)).collect();
        if let [first, second, ..] = kinds[..] {
            return Self::refuse(index, second, format!("{first} is set as well; remove one of them"));
        }
        Ok(match (&self.access_key_id, secret, &self.credentials_file, &self.service_account_file) {
            (Some(id), Some(secret), ..) => AccessKeys::Key { id: id.clone(), secret },
            (_, _, Some(path), _) => {
                let profile = self.profile.clone().unwrap_or_else(|| "default".to_owned());
                let section = S3Profile { path: path.clone(), profile };
                section.check().or_else(|error| Self::refuse(index, "credentials_file", error))?;
                AccessKeys::Profile(section)
            }
            (_, _, _, Some(path)) => {
                read_file(index, "service_account_file", path)?;
                AccessKeys::ServiceAccount(path.clone())
            }
            _ if self.anonymous => AccessKeys::Anonymous,
            _ => AccessKeys::Environment,
        })
    }
}
