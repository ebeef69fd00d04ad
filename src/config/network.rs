//! `[network]`.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use super::{Error, secret, value};
use crate::region::{Exception, ForwardProxy};

/// `[network]`: how what is elsewhere is reached: the stores of regions, and Alibaba Cloud. Variables such as `HTTPS_PROXY` say nothing here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The proxy that stores are reached by, as `http://HOST:PORT` or `https://HOST:PORT`; without one, they are reached directly. What is
    /// with TLS passes it unread (CONNECT). Which addresses may be reached is decided here all the same.
    pub proxy: Option<String>,
    /// The name that the proxy is shown.
    pub proxy_username: Option<String>,
    /// The variable that holds the password for it.
    pub proxy_password_env: Option<String>,
    /// The file that holds it.
    pub proxy_password_file: Option<PathBuf>,
    /// Hosts that are reached without the proxy: `example.com` with what is below it, `.example.com` for what is below it alone, addresses,
    /// networks such as `10.0.0.0/8`; or `*` for all.
    pub no_proxy: Vec<String>,
    /// Whether the proxy alone resolves names, for a network in which names of the outside can't be resolved. Else a name is resolved here
    /// before the proxy is asked for it, and refused where it leads to an address that is never contacted.
    pub proxy_resolves: bool,
}

impl Network {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.forward_proxy().map(drop)
    }

    /// The proxy of all regions that say nothing else.
    pub(super) fn forward_proxy(&self) -> Result<Option<ForwardProxy>, Error> {
        let keys = ["network.proxy_password_env", "network.proxy_password_file"];
        let password = secret(keys, self.proxy_password_env.as_ref(), self.proxy_password_file.as_ref())?;
        let login = match (&self.proxy_username, password) {
            (Some(username), Some(password)) => Some((username.clone(), password)),
            (None, None) => None,
            _ => {
                return Err(value(
                    "network.proxy_username",
                    "it and its password (proxy_password_env or _file) go together",
                ));
            }
        };
        match &self.proxy {
            Some(url) => Ok(Some(self.proxy_at("network.proxy", url)?.with_login(login))),
            None if login.is_some() => Err(value("network.proxy_username", "there is no network.proxy to show it to")),
            None => self.exceptions().map(|_| None),
        }
    }

    /// A proxy at that URL, with what holds for every one.
    pub(super) fn proxy_at(&self, key: &str, url: &str) -> Result<ForwardProxy, Error> {
        // It is not repeated: it may hold a password.
        let refuse = |problem: &str| value(key, problem);
        let url: Url = url.parse().map_err(|_| refuse("it is not a URL; expected http://HOST:PORT"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(refuse("it is neither http:// nor https:// and a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(
                "a name and a password stand in network.proxy_username and network.proxy_password_file",
            ));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("a proxy has a host and maybe a port, and nothing else"));
        }
        Ok(ForwardProxy::new(url).except(self.exceptions()?).resolving(self.proxy_resolves))
    }

    fn exceptions(&self) -> Result<Vec<Exception>, Error> {
        let parse = |(place, text): (usize, &String)| {
            text.parse().map_err(|error| value(format!("network.no_proxy[{place}]"), error))
        };
        self.no_proxy.iter().enumerate().map(parse).collect()
    }
}
