//! `[alibaba]`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use url::Url;

use super::{Error, positive, secret_source, value};
use crate::region::{
    ForwardProxy,
    ecs::{Credentials, Profile, Settings},
    is_loopback,
};

/// What stands in an endpoint for the provider's name of the region.
const REGION: &str = "{region}";

/// `[alibaba]`: how Alibaba Cloud is spoken to, where regions are its own (`ecs://REGION`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alibaba {
    /// The public part of the access key.
    pub access_key_id: Option<String>,
    /// The variable that holds its secret part.
    pub access_key_secret_env: Option<String>,
    /// The file that holds it. It is read again for every request, so that it may be replaced at any time.
    pub access_key_secret_file: Option<PathBuf>,
    /// The variable that holds the security token, if the key is a temporary one.
    pub security_token_env: Option<String>,
    /// The file that holds it. It is read again for every request.
    pub security_token_file: Option<PathBuf>,
    /// A credentials file as the provider's own tools use it, instead of a key.
    pub credentials_file: Option<PathBuf>,
    /// Which of its sections.
    pub profile: String,
    /// Where the ECS of a region is; `{region}` stands for its name.
    pub endpoint: String,
    /// Where roles are assumed.
    pub sts_endpoint: String,
    /// Whether an endpoint that is not this machine may be spoken to without TLS.
    pub allow_http: bool,
    /// How long a request may take.
    pub timeout_ms: u64,
    /// How long it is waited between two looks at a copy.
    pub poll_ms: u64,
    /// How long an image may not be listed after it was made.
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
    /// How the provider is spoken to.
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

    /// Where the ECS of a region is.
    pub(super) fn endpoint(&self, region: &str) -> Result<Url, Error> {
        self.url("endpoint", &self.endpoint.replace(REGION, region))
    }

    fn url(&self, key: &str, text: &str) -> Result<Url, Error> {
        let refuse = |problem: &str| value(format!("alibaba.{key}"), problem);
        let url: Url = text.parse().map_err(|_| refuse("it is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(refuse("it is neither http:// nor https:// and a host"));
        }
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !plain || !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("an endpoint has a host and maybe a port, and nothing else"));
        }
        if url.scheme() == "http" && !is_loopback(&url) && !self.allow_http {
            return Err(refuse("an endpoint without TLS that is not this machine needs alibaba.allow_http = true"));
        }
        Ok(url)
    }

    fn credentials(&self) -> Result<Credentials, Error> {
        let one = |env: &str, file: &str, variable: &Option<String>, path: &Option<PathBuf>| {
            let keys = [format!("alibaba.{env}"), format!("alibaba.{file}")];
            secret_source([&keys[0], &keys[1]], variable.as_ref(), path.as_ref())
        };
        let key = one(
            "access_key_secret_env",
            "access_key_secret_file",
            &self.access_key_secret_env,
            &self.access_key_secret_file,
        )?;
        let token =
            one("security_token_env", "security_token_file", &self.security_token_env, &self.security_token_file)?;
        match (&self.access_key_id, key, token, &self.credentials_file) {
            (Some(id), Some(secret), security_token, None) => {
                Ok(Credentials::Key { id: id.clone(), secret, security_token })
            }
            (None, None, None, Some(path)) => {
                let refuse =
                    |problem: String| value("alibaba.credentials_file", format!("{}: {problem}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
                Profile::parse(&text, &self.profile).map_err(refuse)?;
                Ok(Credentials::File { path: path.clone(), profile: self.profile.clone() })
            }
            (None, None, None, None) => Err(value(
                "alibaba",
                "regions of ECS need access_key_id and access_key_secret_env or _file, or a credentials_file",
            )),
            (_, _, _, Some(_)) => Err(value("alibaba.credentials_file", "there is an access key as well")),
            (None, _, _, None) => Err(value("alibaba.access_key_id", "it is missing, and there is a secret")),
            (Some(_), None, _, None) => Err(value(
                "alibaba.access_key_id",
                "its secret is missing (access_key_secret_env or access_key_secret_file)",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const LEAST: &str = r#"
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
    fn a_refusal_names_the_key_and_no_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        let secret = file("secret", "top-secret");
        let key = format!("access_key_id = \"AK\"\naccess_key_secret_file = \"{secret}\"");
        let credentials = file("credentials", "[other]\ntype = access_key\naccess_key_secret = top-secret\n");
        assert!(Config::parse(&format!("{LEAST}\n[alibaba]\n{key}")).is_ok());
        for (more, named) in [
            (String::new(), "alibaba: regions of ECS need access_key_id"),
            ("[alibaba]\naccess_key_id = \"AK\"".to_owned(), "alibaba.access_key_id: its secret is missing"),
            (format!("[alibaba]\naccess_key_secret_file = \"{secret}\""), "alibaba.access_key_id: it is missing"),
            (format!("[alibaba]\n{key}\ncredentials_file = \"{credentials}\""), "there is an access key as well"),
            (format!("[alibaba]\ncredentials_file = \"{credentials}\""), "it has no section [default]"),
            ("[alibaba]\ncredentials_file = \"/nowhere\"".to_owned(), "alibaba.credentials_file: /nowhere"),
            (
                format!("[alibaba]\n{key}\nendpoint = \"http://ecs.example.com\""),
                "alibaba.endpoint: an endpoint without TLS",
            ),
            (
                format!("[alibaba]\n{key}\nendpoint = \"https://me:top-secret@host\""),
                "alibaba.endpoint: an endpoint has a host",
            ),
            (format!("[alibaba]\n{key}\nsts_endpoint = \"ftp://host\""), "alibaba.sts_endpoint: it is neither"),
            (format!("[alibaba]\n{key}\npoll_ms = 0"), "alibaba.poll_ms: 0"),
            (format!("[alibaba]\n{key}\npol_ms = 1"), "pol_ms"),
            ("[[region]]\nid = \"c\"\nstore = \"dir:///c\"".to_owned(), "region[2].store: ECS copies between its own"),
            (
                "[[region]]\nid = \"c\"\nstore = \"ecs://c\"\nanonymous = true".to_owned(),
                "region[2].anonymous: it is of object",
            ),
            (
                "[[region]]\nid = \"c\"\nstore = \"ecs://c\"\negress_copies = 1".to_owned(),
                "region[2].egress_copies: it says nothing",
            ),
        ] {
            let refusal = Config::parse(&format!("{LEAST}\n{more}")).expect_err(&more).to_string();
            assert!(refusal.contains(named), "{more:?} was refused with {refusal:?}");
            assert!(!refusal.contains("top-secret"), "{refusal}");
        }
        let stores = LEAST.replace("ecs://", "dir:///");
        let refusal = Config::parse(&format!("{stores}\n[alibaba]\n{key}")).expect_err("nobody needs it").to_string();
        assert!(refusal.contains("alibaba: no region is ecs://REGION"), "{refusal}");
    }
}
