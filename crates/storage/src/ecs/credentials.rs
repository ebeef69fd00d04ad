//! Credentials for Alibaba Cloud: an access key, a temporary key with a security token, or a profile of a credentials
//! file. Every request reads the files again.

use std::{path::PathBuf, time::Duration};

use domain::{Secret, Timestamp};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::{
    client::{Call, Client, Product},
    error::Error,
};
use crate::{SecretFileError, SecretSource, secret_file};

/// How long before their expiry a role's keys are renewed.
const EARLY: Duration = Duration::from_secs(300);
/// The requested lifetime of a role's keys, in seconds. Every role allows at least this much.
const ROLE_SECONDS: u32 = 3_600;
/// Maximum size of a credentials file, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// An access key, with a security token if it is temporary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The access key id.
    pub id: String,
    /// The access key secret.
    pub secret: Secret,
    /// The security token of a temporary key.
    pub security_token: Option<Secret>,
}

/// Where the keys are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A key whose secret parts may change between requests.
    Key {
        /// The access key id.
        id: String,
        /// The access key secret.
        secret: SecretSource,
        /// The security token of a temporary key.
        security_token: Option<SecretSource>,
    },
    /// A credentials file. Every request reads it again, so it may be replaced at any time.
    File {
        /// The path of the file, which has the format of Alibaba Cloud's own tools.
        path: PathBuf,
        /// The name of the section that is read.
        profile: String,
    },
}

/// The content of a section of a credentials file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Profile {
    /// `type = access_key` or `type = sts`.
    Keys(Keys),
    /// `type = ram_role_arn`: the temporary keys of a role.
    Role {
        /// The keys that assume the role.
        keys: Keys,
        arn: String,
        /// The `RoleSessionName`, which appears in the audit trail of Alibaba Cloud.
        session: String,
    },
}

impl Profile {
    /// Parses a section of a credentials file (Alibaba Cloud SDK, "Manage access credentials",
    /// `~/.alibabacloud/credentials.ini`).
    pub fn parse(text: &str, profile: &str) -> Result<Self, String> {
        // The parser's message may quote a line, and with it a secret.
        let file = ini::Ini::load_from_str(text).map_err(|error| format!("line {} can't be read", error.line))?;
        let section = file.section(Some(profile)).ok_or_else(|| format!("it has no section [{profile}]"))?;
        let maybe = |key: &str| section.get(key).map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned);
        let need = |key: &str| maybe(key).ok_or_else(|| format!("[{profile}] has no {key}"));
        let kind = need("type")?;
        let keys = |security_token| {
            Ok::<_, String>(Keys {
                id: need("access_key_id")?,
                secret: Secret(need("access_key_secret")?),
                security_token,
            })
        };
        match kind.as_str() {
            "access_key" => Ok(Self::Keys(keys(None)?)),
            "sts" => Ok(Self::Keys(keys(Some(Secret(need("security_token")?)))?)),
            "ram_role_arn" => Ok(Self::Role {
                keys: keys(None)?,
                arn: need("role_arn")?,
                session: maybe("role_session_name").unwrap_or_else(|| "appferry".to_owned()),
            }),
            other => Err(format!("[{profile}] has type {other}; expected access_key, sts or ram_role_arn")),
        }
    }
}

/// Provides the keys for each request, and caches those of an assumed role.
#[derive(Debug)]
pub struct CredentialProvider {
    credentials: Credentials,
    sts: Url,
    assumed: Mutex<Option<Assumed>>,
}

/// The cached keys of an assumed role.
#[derive(Debug)]
struct Assumed {
    /// The profile that assumed the role; a changed profile invalidates the cache.
    by: Profile,
    keys: Keys,
    until: Timestamp,
}

impl CredentialProvider {
    /// Creates a provider that assumes roles at `sts`.
    pub fn new(credentials: Credentials, sts: Url) -> Self {
        Self { credentials, sts, assumed: Mutex::new(None) }
    }

    /// Returns the keys for the next request.
    pub async fn keys(&self, client: &Client) -> Result<Keys, Error> {
        let (path, profile) = match &self.credentials {
            Credentials::Key { id, secret, security_token } => {
                return Self::key(id, secret, security_token.as_ref()).await;
            }
            Credentials::File { path, profile } => (path, profile),
        };
        let unusable = |problem: String| Error::Credentials(format!("{}: {problem}", path.display()));
        let text =
            secret_file::read(path, MAX_FILE_BYTES).await.map_err(|error| Error::Credentials(error.to_string()))?;
        match Profile::parse(&text, profile).map_err(unusable)? {
            Profile::Keys(keys) => Ok(keys),
            role @ Profile::Role { .. } => self.assume(client, role).await,
        }
    }

    /// Returns a key whose secret parts have just been read.
    async fn key(id: &str, secret: &SecretSource, security_token: Option<&SecretSource>) -> Result<Keys, Error> {
        let unusable = |error: SecretFileError| Error::Credentials(error.to_string());
        let security_token = match security_token {
            Some(token) => Some(token.read().await.map_err(unusable)?),
            None => None,
        };
        Ok(Keys { id: id.to_owned(), secret: secret.read().await.map_err(unusable)?, security_token })
    }

    /// Returns the keys of a role. The lock is held during the request, so that concurrent callers share its result.
    async fn assume(&self, client: &Client, role: Profile) -> Result<Keys, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            credentials: Temporary,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Temporary {
            access_key_id: String,
            access_key_secret: String,
            security_token: String,
            expiration: String,
        }
        let mut assumed = self.assumed.lock().await;
        if let Some(known) = assumed.as_ref()
            && known.by == role
            && client.now().after(EARLY) < known.until
        {
            return Ok(known.keys.clone());
        }
        let Profile::Role { keys, arn, session } = &role else {
            return Err(Error::Credentials("there is no role to assume".to_owned()));
        };
        let parameters = [
            ("RoleArn", arn.clone()),
            ("RoleSessionName", session.clone()),
            ("DurationSeconds", ROLE_SECONDS.to_string()),
        ];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let call = Call { product: Product::Sts, base: &self.sts, action: "AssumeRole", parameters };
        let Answer { credentials: given } = client.call(keys, call).await?;
        let keys = Keys {
            id: given.access_key_id,
            secret: Secret(given.access_key_secret),
            security_token: Some(Secret(given.security_token)),
        };
        let until = Timestamp::parse(&given.expiration).unwrap_or_else(|| client.now());
        *assumed = Some(Assumed { by: role, keys: keys.clone(), until });
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use domain::Secret;

    use super::{Keys, Profile};

    const FILE: &str = "\
        [default]\n\
        enable = true\n\
        type = access_key\n\
        access_key_id = AK1\n\
        access_key_secret = s=cr;t#1\n\
        [temporary]\n\
        type = sts\n\
        access_key_id = STS.2\n\
        access_key_secret = secret2\n\
        security_token = CAIS+/=\n\
        [role]\n\
        type = ram_role_arn\n\
        access_key_id = AK3\n\
        access_key_secret = secret3\n\
        role_arn = acs:ram::1234:role/copier\n\
        [old]\n\
        type = rsa_key_pair\n\
        [half]\n\
        type = access_key\n\
        access_key_id = AK4\n";

    #[test]
    fn sections_are_read_and_refused() {
        let keys = |id: &str, secret: &str, token: Option<&str>| Keys {
            id: id.into(),
            secret: Secret(secret.into()),
            security_token: token.map(|token| Secret(token.into())),
        };
        assert_eq!(Profile::parse(FILE, "temporary"), Ok(Profile::Keys(keys("STS.2", "secret2", Some("CAIS+/=")))));
        assert_eq!(Profile::parse(FILE, "default"), Ok(Profile::Keys(keys("AK1", "s=cr;t#1", None))));
        let role = Profile::Role {
            keys: keys("AK3", "secret3", None),
            arn: "acs:ram::1234:role/copier".into(),
            session: "appferry".into(),
        };
        assert_eq!(Profile::parse(FILE, "role"), Ok(role));
        for (profile, why) in
            [("old", "rsa_key_pair"), ("half", "[half] has no access_key_secret"), ("none", "no section [none]")]
        {
            let refusal = Profile::parse(FILE, profile).expect_err(profile);
            assert!(refusal.contains(why) && !refusal.contains("secret2"), "{refusal}");
        }
        let refusal = Profile::parse("[default\naccess_key_secret = top-secret", "default").expect_err("it is broken");
        assert!(!refusal.contains("top-secret"), "{refusal}");
    }
}
