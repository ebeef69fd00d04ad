//! Credentials for buckets. Their secrets are read again for every request, so that the files may be replaced at any
//! time.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use domain::Secret;
use object_store::{
    CredentialProvider,
    aws::AwsCredential,
    azure::{AzureAccessKey, AzureCredential},
    gcp::{GcpCredential, GcpCredentialProvider, GoogleCloudStorageBuilder},
};
use tokio::sync::Mutex;

use crate::{
    SecretSource,
    secret_file::{self, SecretFileError},
};

/// Maximum size of a credentials file, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The credentials for a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessKeys {
    /// The credentials in the provider's usual environment variables.
    #[default]
    Environment,
    /// No credentials, for a public bucket.
    Anonymous,
    /// An access key (S3) or an account (Azure).
    Key {
        /// The id of the key, or the name of the account.
        id: String,
        /// The secret access key, or the key of the account.
        secret: SecretSource,
    },
    /// A section of a credentials file in the format of AWS's own tools (S3). It has an access key, and a session token
    /// if the key is temporary.
    Profile(S3Profile),
    /// A service account's file (Google).
    ServiceAccount(PathBuf),
}

/// The reason why a credentials file can't be used. It does not reveal the file's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ProfileError {
    /// The file can't be read.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// A section or a value is missing, or a line is malformed.
    #[error("{}: {problem}", path.display())]
    Form { path: PathBuf, problem: String },
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Generic { store: "credentials", source: Box::new(error) }
}

/// An S3 access key whose secret may change between requests.
#[derive(Debug)]
pub struct S3Key {
    pub id: String,
    pub secret: SecretSource,
}

#[async_trait]
impl CredentialProvider for S3Key {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let Secret(secret_key) = self.secret.read().await.map_err(failed)?;
        Ok(Arc::new(AwsCredential { key_id: self.id.clone(), secret_key, token: None }))
    }
}

/// A section of a credentials file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct S3Profile {
    pub path: PathBuf,
    /// The name of the section.
    pub profile: String,
}

impl S3Profile {
    /// Parses the section (AWS SDKs and Tools Reference Guide, "Shared config and credentials files").
    fn parse(&self, text: &str) -> Result<AwsCredential, ProfileError> {
        let unusable = |problem: String| ProfileError::Form { path: self.path.clone(), problem };
        // The parser's message may quote a line, and with it a secret.
        let file = ini::Ini::load_from_str_noescape(text)
            .map_err(|error| unusable(format!("line {} can't be read", error.line)))?;
        let profile = &self.profile;
        let section = file.section(Some(profile)).ok_or_else(|| unusable(format!("it has no section [{profile}]")))?;
        let maybe = |key: &str| section.get(key).map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned);
        let need = |key: &str| maybe(key).ok_or_else(|| unusable(format!("[{profile}] has no {key}")));
        Ok(AwsCredential {
            key_id: need("aws_access_key_id")?,
            secret_key: need("aws_secret_access_key")?,
            token: maybe("aws_session_token"),
        })
    }

    /// Checks that the section can be read and parsed. Blocks the thread while it reads.
    pub fn check(&self) -> Result<(), ProfileError> {
        self.parse(&secret_file::read_now(&self.path, MAX_FILE_BYTES)?).map(drop)
    }
}

#[async_trait]
impl CredentialProvider for S3Profile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let text =
            secret_file::read(&self.path, MAX_FILE_BYTES).await.map_err(|error| failed(ProfileError::from(error)))?;
        Ok(Arc::new(self.parse(&text).map_err(failed)?))
    }
}

/// An Azure account whose key may change between requests.
#[derive(Debug)]
pub struct AzureKey(pub SecretSource);

#[async_trait]
impl CredentialProvider for AzureKey {
    type Credential = AzureCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AzureCredential>> {
        let Secret(key) = self.0.read().await.map_err(failed)?;
        Ok(Arc::new(AzureCredential::AccessKey(AzureAccessKey::try_new(&key)?)))
    }
}

/// A Google service account whose file may change. A changed file invalidates the tokens.
#[derive(Debug)]
pub struct GoogleAccount {
    path: PathBuf,
    /// The settings for requesting tokens, without the account.
    builder: GoogleCloudStorageBuilder,
    current: Mutex<Option<(String, GcpCredentialProvider)>>,
}

impl GoogleAccount {
    /// Creates a provider for the account in a file; `builder` requests its tokens.
    pub fn new(path: PathBuf, builder: GoogleCloudStorageBuilder) -> Self {
        Self { path, builder, current: Mutex::new(None) }
    }
}

#[async_trait]
impl CredentialProvider for GoogleAccount {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        let text = secret_file::read(&self.path, MAX_FILE_BYTES).await.map_err(failed)?;
        let mut current = self.current.lock().await;
        let provider = match current.as_ref().filter(|(known, _)| *known == text) {
            Some((_, provider)) => Arc::clone(provider),
            None => {
                let account = self.builder.clone().with_service_account_key(&text).build()?;
                Arc::clone(&current.insert((text, Arc::clone(account.credentials()))).1)
            }
        };
        drop(current);
        provider.get_credential().await
    }
}

#[cfg(test)]
mod tests {
    use super::{AwsCredential, S3Profile};

    const FILE: &str = "\
        [default]\n\
        aws_access_key_id = AK1\n\
        aws_secret_access_key = s=cr\\t#1\n\
        [temporary]\n\
        aws_access_key_id=ASIA2\n\
        aws_secret_access_key=secret2\n\
        aws_session_token=IQoJ//+=\n\
        [half]\n\
        aws_access_key_id = AK3\n";

    #[test]
    fn sections_are_read_and_refused() {
        let parse = |profile: &str| S3Profile { path: "c".into(), profile: profile.into() }.parse(FILE);
        let key = |id: &str, secret: &str, token: Option<&str>| AwsCredential {
            key_id: id.into(),
            secret_key: secret.into(),
            token: token.map(Into::into),
        };
        assert_eq!(parse("default").ok(), Some(key("AK1", "s=cr\\t#1", None)));
        assert_eq!(parse("temporary").ok(), Some(key("ASIA2", "secret2", Some("IQoJ//+="))));
        for (profile, told) in [("half", "[half] has no aws_secret_access_key"), ("none", "no section [none]")] {
            let refusal = parse(profile).expect_err(profile).to_string();
            assert!(refusal.contains(told) && !refusal.contains("secret2"), "{refusal}");
        }
    }
}
