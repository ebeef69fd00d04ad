//! What regions are shown: which of the keys of `[[region]]` go together, and whether what they name is there.

use std::path::Path;

use super::{
    Error,
    region::{Checksum, Region, bytes},
    secret_source,
};
use crate::region::{
    AccessKeys, CredentialSource, Credentials, DockerEntry, Helper, Program, Provider, RegistryKey, RegistryLocation,
    S3Profile, read_docker_config,
};

impl Region {
    /// Who asks a registry: one way alone.
    pub(super) fn credentials(&self, place: usize, location: &RegistryLocation) -> Result<CredentialSource, Error> {
        let keys = ["password_env", "password_file"].map(|key| format!("region[{place}].{key}"));
        let password = secret_source([&keys[0], &keys[1]], self.password_env.as_ref(), self.password_file.as_ref())?;
        if !self.credential_helper_env.is_empty() && self.credential_helper.is_none() && self.docker_config.is_none() {
            let problem = "there is neither a credential_helper nor a docker_config that may name one";
            return Self::refuse(place, "credential_helper_env", problem);
        }
        match (&self.username, password, &self.docker_config, &self.credential_helper) {
            (None, None, None, None) => Ok(CredentialSource::Fixed(Credentials::Anonymous)),
            (Some(username), Some(password), None, None) => {
                Ok(CredentialSource::Password { username: username.clone(), password })
            }
            (None, None, Some(file), None) => self.docker_config(place, file, location),
            (None, None, None, Some(name)) => {
                let program: Program = name.parse().or_else(|error| Self::refuse(place, "credential_helper", error))?;
                program
                    .find(std::env::var_os("PATH"))
                    .or_else(|error| Self::refuse(place, "credential_helper", error))?;
                let environment = self.credential_helper_env.clone();
                Ok(CredentialSource::Helper(Helper {
                    program,
                    server: RegistryKey::from(location).server(),
                    environment,
                }))
            }
            (Some(_), None, None, None) => {
                Self::refuse(place, "username", "there is neither password_env nor password_file")
            }
            (None, Some(_), None, None) => Self::refuse(place, "username", "it is missing, and there is a password"),
            (_, _, None, Some(_)) => {
                Self::refuse(place, "credential_helper", "there are a username or a password as well")
            }
            (_, _, Some(_), None) => Self::refuse(place, "docker_config", "there are a username or a password as well"),
            (_, _, Some(_), Some(_)) => {
                Self::refuse(place, "credential_helper", "there is a docker_config as well, which may name one itself")
            }
        }
    }

    /// It must have an entry now; what the entry says is looked up whenever it is needed.
    fn docker_config(&self, place: usize, path: &Path, location: &RegistryLocation) -> Result<CredentialSource, Error> {
        let registry = RegistryKey::from(location);
        let entry = read_docker_config(path, &registry).or_else(|error| Self::refuse(place, "docker_config", error))?;
        if let DockerEntry::Helped { program, .. } = entry {
            program.find(std::env::var_os("PATH")).or_else(|error| Self::refuse(place, "docker_config", error))?;
        }
        Ok(CredentialSource::DockerConfig {
            path: path.to_owned(),
            registry,
            environment: self.credential_helper_env.clone(),
        })
    }

    /// Who asks a bucket: one way, and one that its provider has.
    pub(super) fn access_keys(&self, place: usize, provider: Provider) -> Result<AccessKeys, Error> {
        let keys = ["secret_access_key_env", "secret_access_key_file"].map(|key| format!("region[{place}].{key}"));
        let (variable, file) = (self.secret_access_key_env.as_ref(), self.secret_access_key_file.as_ref());
        let secret = secret_source([&keys[0], &keys[1]], variable, file)?;
        if self.access_key_id.is_some() != secret.is_some() {
            let problem = "it and its secret (secret_access_key_env or _file) go together";
            return Self::refuse(place, "access_key_id", problem);
        }
        let of_one_provider = [
            ("service_account_file", self.service_account_file.is_some(), Provider::Gcs),
            ("credentials_file", self.credentials_file.is_some(), Provider::S3),
            ("profile", self.profile.is_some(), Provider::S3),
            ("checksum", self.checksum != Checksum::Sha256, Provider::S3),
        ];
        if let Some((key, _, of)) = of_one_provider.iter().find(|(_, given, of)| *given && *of != provider) {
            return Self::refuse(place, key, format!("it is of {}:// stores, and this one is another", of.scheme()));
        }
        if self.profile.is_some() && self.credentials_file.is_none() {
            return Self::refuse(place, "profile", "there is no credentials_file");
        }
        let given = [
            ("access_key_id", self.access_key_id.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
            ("service_account_file", self.service_account_file.is_some()),
            ("anonymous", self.anonymous),
        ];
        let given: Vec<&str> = given.iter().filter_map(|(key, given)| given.then_some(*key)).collect();
        if let [first, second, ..] = given[..] {
            return Self::refuse(place, second, format!("there is {first} as well"));
        }
        Ok(match (&self.access_key_id, secret, &self.credentials_file, &self.service_account_file) {
            (Some(id), Some(secret), ..) => AccessKeys::Key { id: id.clone(), secret },
            (_, _, Some(path), _) => {
                let profile = self.profile.clone().unwrap_or_else(|| "default".to_owned());
                let file = S3Profile { path: path.clone(), profile };
                file.check().or_else(|error| Self::refuse(place, "credentials_file", error))?;
                AccessKeys::Profile(file)
            }
            (_, _, _, Some(path)) => {
                bytes(place, "service_account_file", path)?;
                AccessKeys::ServiceAccount(path.clone())
            }
            _ if self.anonymous => AccessKeys::Anonymous,
            _ => AccessKeys::Environment,
        })
    }
}
