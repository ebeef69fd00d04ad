//! A forward proxy (RFC 9110, sections 3.7 and 9.3.6), and the hosts that bypass it.

use std::{net::IpAddr, str::FromStr};

use domain::{ForeignText, Secret};
use ipnet::IpNet;
use url::{Host, Url};

/// A forward proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardProxy {
    url: Url,
    login: Option<(String, Secret)>,
    except: Vec<Exception>,
    resolves: bool,
}

impl ForwardProxy {
    /// Creates a proxy that is used for all hosts.
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self { url, login: None, except: Vec::new(), resolves: false }
    }

    /// Returns the same proxy with this user name and password.
    #[must_use]
    pub fn with_login(self, login: Option<(String, Secret)>) -> Self {
        Self { login, ..self }
    }

    /// Returns the same proxy, bypassed for these hosts.
    #[must_use]
    pub fn except(self, except: Vec<Exception>) -> Self {
        Self { except, ..self }
    }

    /// Returns the same proxy. If `resolves` is true, only the proxy resolves names, and the guard does not check their
    /// addresses.
    #[must_use]
    pub fn resolving(self, resolves: bool) -> Self {
        Self { resolves, ..self }
    }

    /// Returns the proxy's URL.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Returns the user name and the password for the proxy.
    #[must_use]
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(username, Secret(password))| (username.as_str(), password.as_str()))
    }

    /// Returns whether only the proxy resolves names.
    #[must_use]
    pub fn resolves(&self) -> bool {
        self.resolves
    }

    /// Returns whether requests to a URL use the proxy.
    #[must_use]
    pub fn covers(&self, url: &Url) -> bool {
        !self.except.iter().any(|exception| exception.covers(url))
    }
}

/// Hosts that bypass the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    /// `*`: every host.
    All,
    /// `10.0.0.0/8`: matches hosts that are written as IP addresses.
    Network(IpNet),
    /// `example.com` matches the host and its subdomains; `.example.com` and `*.example.com` match only the subdomains.
    /// Each form may end with `:PORT`.
    Domain {
        /// The host's name, in lower case.
        name: String,
        /// Whether the host itself matches too.
        itself: bool,
        /// The port; `None` matches every port.
        port: Option<u16>,
    },
}

/// The error for a text that is not a valid exception.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no hosts; expected a host, .DOMAIN, an address, a network such as 10.0.0.0/8, or *")]
pub struct ExceptionError(ForeignText);

impl FromStr for Exception {
    type Err = ExceptionError;

    fn from_str(text: &str) -> Result<Self, ExceptionError> {
        if text == "*" {
            return Ok(Self::All);
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(network) = bare.parse::<IpNet>().or_else(|_| bare.parse::<IpAddr>().map(IpNet::from)) {
            return Ok(Self::Network(network));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| ExceptionError(ForeignText::value(text)))?)),
            None => (text, None),
        };
        let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
        let name = below.unwrap_or(host).to_ascii_lowercase();
        match Host::parse(&name) {
            Ok(Host::Domain(name)) if !name.contains('*') => Ok(Self::Domain { name, itself: below.is_none(), port }),
            Ok(Host::Ipv4(address)) if port.is_none() => Ok(Self::Network(IpAddr::from(address).into())),
            _ => Err(ExceptionError(ForeignText::value(text))),
        }
    }
}

impl Exception {
    fn covers(&self, url: &Url) -> bool {
        match (self, url.host()) {
            (Self::All, _) => true,
            (Self::Network(network), Some(Host::Ipv4(address))) => network.contains(&IpAddr::from(address)),
            (Self::Network(network), Some(Host::Ipv6(address))) => network.contains(&IpAddr::from(address)),
            (Self::Domain { name, itself, port }, Some(Host::Domain(host))) => {
                let below = host.strip_suffix(name.as_str());
                let named = below.is_some_and(|rest| if rest.is_empty() { *itself } else { rest.ends_with('.') });
                named && (port.is_none() || *port == url.port_or_known_default())
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Exception, ForwardProxy};

    #[test]
    fn exceptions_are_hosts_domains_and_networks() {
        let except = [
            "10.0.0.0/8",
            "192.0.2.7",
            "fd00::/8",
            "Inner.example",
            ".below.example",
            "*.star.example",
            "port.example:5000",
        ];
        let except = except.iter().map(|text| text.parse().expect("one")).collect();
        let proxy = ForwardProxy::new("http://proxy.example".parse().expect("a URL")).except(except);
        for (url, covered) in [
            ("https://10.1.2.3/", false),
            ("https://11.1.2.3/", true),
            ("https://192.0.2.7:5000/", false),
            ("https://[fd00::1]/", false),
            ("https://inner.example/", false),
            ("https://a.inner.example/", false),
            ("https://notinner.example/", true),
            ("https://below.example/", true),
            ("https://a.b.below.example/", false),
            ("https://star.example/", true),
            ("https://a.star.example/", false),
            ("https://port.example:5000/", false),
            ("https://port.example/", true),
        ] {
            assert_eq!(proxy.covers(&url.parse().expect("a URL")), covered, "{url}");
        }
        assert!(!proxy.except(vec![Exception::All]).covers(&"https://any.example/".parse().expect("a URL")));
        for bad in ["", "10.0.0.0/33", "a b", "x.example:port", "a.*.example"] {
            assert!(bad.parse::<Exception>().is_err(), "{bad}");
        }
    }
}
