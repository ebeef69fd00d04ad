//! The section `[alibaba]`: the API of Alibaba Cloud.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use url::Url;

use super::{Error, invalid, positive, secret_source};
use crate::storage::{
    ForwardProxy,
    ecs::{Credentials, Profile, Settings},
    is_loopback,
};

/// The placeholder in an endpoint that stands for the provider's name of the region.
const REGION: &str = "{region}";

/// `[alibaba]`: the client of Alibaba Cloud, for regions with `ecs://REGION` stores.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alibaba {
    /// The id of the access key.
    pub access_key_id: Option<String>,
    /// The environment variable with the secret of the access key.
    pub access_key_secret_env: Option<String>,
    /// The file with the secret of the access key. It is read for every request, so that it can be rotated.
    pub access_key_secret_file: Option<PathBuf>,
    /// The environment variable with the security token of a temporary key.
    pub security_token_env: Option<String>,
    /// The file with the security token. It is read for every request.
    pub security_token_file: Option<PathBuf>,
    /// A credentials file of the provider's tools, in place of a key.
    pub credentials_file: Option<PathBuf>,
    /// The section of the credentials file.
    pub profile: String,
    /// The ECS endpoint of a region; `{region}` is replaced by the provider's name of the region.
    pub endpoint: String,
    /// The STS endpoint at which roles are assumed.
    pub sts_endpoint: String,
    /// Whether a remote endpoint may be contacted without TLS.
    pub allow_http: bool,
    /// The time limit of a request, in milliseconds.
    pub timeout_ms: u64,
    /// The interval between two polls of a copy, in milliseconds.
    pub poll_ms: u64,
    /// How long an image may be missing from listings after its creation, in milliseconds.
    pub settle_ms: u64,
}

impl Default for Alibaba {
    fn default() -> Self {
        Self {
            access_key_id: None,
            access_key_secret_env: None,
            access_key_secret_file: None,
            security_token_env: None,
            security_token_file: None,
            credentials_file: None,
            profile: "default".to_owned(),
            endpoint: format!("https://ecs.{REGION}.aliyuncs.com"),
            sts_endpoint: "https://sts.aliyuncs.com".to_owned(),
            allow_http: false,
            timeout_ms: 30_000,
            poll_ms: 10_000,
            settle_ms: 300_000,
        }
    }
}

impl Alibaba {
    /// Returns the settings of the provider's client.
    pub(super) fn settings(&self, proxy: Option<ForwardProxy>) -> Result<Settings, Error> {
        let times = [("timeout_ms", self.timeout_ms), ("poll_ms", self.poll_ms), ("settle_ms", self.settle_ms)];
        positive("alibaba", &times)?;
        let sts = self.url("sts_endpoint", &self.sts_endpoint)?;
        let loopback = is_loopback(&sts) || is_loopback(&self.endpoint("cn-hangzhou")?);
        Ok(Settings {
            credentials: self.credentials()?,
            sts,
            loopback,
            proxy,
            patience: Duration::from_millis(self.timeout_ms),
            poll: Duration::from_millis(self.poll_ms),
            settle: Duration::from_millis(self.settle_ms),
        })
    }

    /// Returns the ECS endpoint of a region.
    pub(super) fn endpoint(&self, region: &str) -> Result<Url, Error> {
        self.url("endpoint", &self.endpoint.replace(REGION, region))
    }

    fn url(&self, key: &str, text: &str) -> Result<Url, Error> {
        let refuse = |problem: &str| invalid(format!("alibaba.{key}"), problem);
        let url: Url = text.parse().map_err(|_| refuse("not a URL; expected https://HOST"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(refuse("not an http:// or https:// URL with a host"));
        }
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !plain || !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("an endpoint has only a host and a port"));
        }
        if url.scheme() == "http" && !is_loopback(&url) && !self.allow_http {
            return Err(refuse("a remote endpoint without TLS needs alibaba.allow_http = true"));
        }
        Ok(url)
    }

    fn credentials(&self) -> Result<Credentials, Error> {
        let source = |env: &str, file: &str, variable: &Option<String>, path: &Option<PathBuf>| {
            let keys = [format!("alibaba.{env}"), format!("alibaba.{file}")];
            secret_source([&keys[0], &keys[1]], variable.as_ref(), path.as_ref())
        };
        let key = source(
            "access_key_secret_env",
            "access_key_secret_file",
            &self.access_key_secret_env,
            &self.access_key_secret_file,
        )?;
        let token =
            source("security_token_env", "security_token_file", &self.security_token_env, &self.security_token_file)?;
        match (&self.access_key_id, key, token, &self.credentials_file) {
            (Some(id), Some(secret), security_token, None) => {
                Ok(Credentials::Key { id: id.clone(), secret, security_token })
            }
            (None, None, None, Some(path)) => {
                let refuse =
                    |problem: String| invalid("alibaba.credentials_file", format!("{}: {problem}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
                Profile::parse(&text, &self.profile).map_err(refuse)?;
                Ok(Credentials::File { path: path.clone(), profile: self.profile.clone() })
            }
            (None, None, None, None) => Err(invalid(
                "alibaba",
                "regions of ECS need access_key_id with access_key_secret_env or access_key_secret_file, or credentials_file",
            )),
            (_, _, _, Some(_)) => {
                Err(invalid("alibaba.credentials_file", "an access key is set as well; remove one of them"))
            }
            (None, _, _, None) => Err(invalid("alibaba.access_key_id", "needed, because its secret is set")),
            (Some(_), None, _, None) => Err(invalid(
                "alibaba.access_key_id",
                "needs a secret; set access_key_secret_env or access_key_secret_file",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const MINIMAL: &str = r#"
        [database]
        url = "sqlite://state.db"
        [home]
        region = "a"
        [[region]]
        id = "a"
        store = "ecs://cn-hangzhou"
        [[region]]
        id = "b"
        store = "ecs://cn-shanghai"
    "#;

    #[test]
    fn an_error_names_the_key_and_no_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        let secret = file("secret", "top-secret");
        let key = format!("access_key_id = \"AK\"\naccess_key_secret_file = \"{secret}\"");
        let credentials = file("credentials", "[other]\ntype = access_key\naccess_key_secret = top-secret\n");
        assert!(Config::parse(&format!("{MINIMAL}\n[alibaba]\n{key}")).is_ok());
        for (section, expected) in [
            (String::new(), "alibaba: regions of ECS need access_key_id"),
            ("[alibaba]\naccess_key_id = \"AK\"".to_owned(), "alibaba.access_key_id: needs a secret"),
            (format!("[alibaba]\naccess_key_secret_file = \"{secret}\""), "alibaba.access_key_id: needed"),
            (format!("[alibaba]\n{key}\ncredentials_file = \"{credentials}\""), "an access key is set as well"),
            (format!("[alibaba]\ncredentials_file = \"{credentials}\""), "it has no section [default]"),
            ("[alibaba]\ncredentials_file = \"/nowhere\"".to_owned(), "alibaba.credentials_file: /nowhere"),
            (
                format!("[alibaba]\n{key}\nendpoint = \"http://ecs.example.com\""),
                "alibaba.endpoint: a remote endpoint without TLS",
            ),
            (
                format!("[alibaba]\n{key}\nendpoint = \"https://me:top-secret@host\""),
                "alibaba.endpoint: an endpoint has only a host",
            ),
            (
                format!("[alibaba]\n{key}\nsts_endpoint = \"ftp://host\""),
                "alibaba.sts_endpoint: not an http:// or https:// URL",
            ),
            (format!("[alibaba]\n{key}\npoll_ms = 0"), "alibaba.poll_ms: 0"),
            (format!("[alibaba]\n{key}\npol_ms = 1"), "pol_ms"),
            ("[[region]]\nid = \"c\"\nstore = \"dir:///c\"".to_owned(), "region[2].store: ECS copies between its own"),
            (
                "[[region]]\nid = \"c\"\nstore = \"ecs://c\"\nanonymous = true".to_owned(),
                "region[2].anonymous: applies to object",
            ),
            (
                "[[region]]\nid = \"c\"\nstore = \"ecs://c\"\negress_copies = 1".to_owned(),
                "region[2].egress_copies: does not apply",
            ),
        ] {
            let error = Config::parse(&format!("{MINIMAL}\n{section}")).expect_err(&section).to_string();
            assert!(error.contains(expected), "{section:?} failed with {error:?}");
            assert!(!error.contains("top-secret"), "{error}");
        }
        let stores = MINIMAL.replace("ecs://", "dir:///");
        let error = Config::parse(&format!("{stores}\n[alibaba]\n{key}")).expect_err("no ECS region").to_string();
        assert!(error.contains("alibaba: no region has an ecs:// store"), "{error}");
    }
}
