//! The section `[network]`: the connections to stores.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use super::{Error, invalid, secret};
use crate::storage::{Exception, ForwardProxy};

/// `[network]`: the forward proxy for the stores of regions and Alibaba Cloud. Variables such as `HTTPS_PROXY` are
/// ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The forward proxy, as `http://HOST:PORT` or `https://HOST:PORT`; none if absent. TLS passes it end to end
    /// (CONNECT). The addresses that may be contacted are checked here in either case.
    pub proxy: Option<String>,
    /// The user name for the proxy.
    pub proxy_username: Option<String>,
    /// The environment variable with the password for the proxy.
    pub proxy_password_env: Option<String>,
    /// The file with the password for the proxy.
    pub proxy_password_file: Option<PathBuf>,
    /// Hosts that are contacted without the proxy: `example.com` with its subdomains, `.example.com` for the subdomains
    /// alone, addresses, networks such as `10.0.0.0/8`, or `*` for all.
    pub no_proxy: Vec<String>,
    /// Whether only the proxy resolves names, for a network in which outside names can't be resolved. Otherwise a name
    /// is resolved here before the proxy is asked for it, and rejected if it leads to an address that is never
    /// contacted.
    pub proxy_resolves: bool,
}

impl Network {
    /// Rejects invalid values.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.forward_proxy().map(drop)
    }

    /// Returns the proxy of all regions that have no proxy of their own.
    pub(super) fn forward_proxy(&self) -> Result<Option<ForwardProxy>, Error> {
        let keys = ["network.proxy_password_env", "network.proxy_password_file"];
        let password = secret(keys, self.proxy_password_env.as_ref(), self.proxy_password_file.as_ref())?;
        let login = match (&self.proxy_username, password) {
            (Some(username), Some(password)) => Some((username.clone(), password)),
            (None, None) => None,
            _ => {
                return Err(invalid(
                    "network.proxy_username",
                    "set it and its password (proxy_password_env or proxy_password_file) together",
                ));
            }
        };
        match &self.proxy {
            Some(url) => Ok(Some(self.proxy_at("network.proxy", url)?.with_login(login))),
            None if login.is_some() => Err(invalid("network.proxy_username", "needs network.proxy")),
            None => self.exceptions().map(|_| None),
        }
    }

    /// Returns a proxy at `url`, with the exceptions and the name resolution of this section.
    pub(super) fn proxy_at(&self, key: &str, url: &str) -> Result<ForwardProxy, Error> {
        // The error omits the URL, which may contain a password.
        let refuse = |problem: &str| invalid(key, problem);
        let url: Url = url.parse().map_err(|_| refuse("not a URL; expected http://HOST:PORT"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(refuse("not an http:// or https:// URL with a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(
                "the URL must not have a user name or password; set network.proxy_username and network.proxy_password_file",
            ));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("a proxy has only a host and a port"));
        }
        Ok(ForwardProxy::new(url).except(self.exceptions()?).resolving(self.proxy_resolves))
    }

    fn exceptions(&self) -> Result<Vec<Exception>, Error> {
        let parse = |(index, text): (usize, &String)| {
            text.parse().map_err(|error| invalid(format!("network.no_proxy[{index}]"), error))
        };
        self.no_proxy.iter().enumerate().map(parse).collect()
    }
}
