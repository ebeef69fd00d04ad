//! Redirects of a registry, and the hosts that it may refer to.

use domain::ForeignText;
use http::{HeaderMap, Method, StatusCode, header::LOCATION};
use url::Url;

use super::Client;
use crate::{Error, Result, location::authority};

/// Maximum number of redirects of one request.
pub const REDIRECTS: usize = 4;
/// Maximum length of a `Location`, in bytes: RFC 9110, section 4.1, recommends support for at least this length.
const MAX_LOCATION: usize = 8_000;

impl Client {
    /// Returns the URL in the `Location` of a response, if it is allowed.
    pub fn target(&self, what: &str, from: &Url, headers: &HeaderMap) -> Result<Url> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| Error::malformed(what, "the answer has no Location"))?;
        if location.len() > MAX_LOCATION {
            let reason = format!("its Location has {} bytes, the most is {MAX_LOCATION}", location.len());
            return Err(Error::malformed(what, reason));
        }
        let url = from.join(location).map_err(|error| Error::malformed(what, format!("its Location: {error}")))?;
        let url = self.secured(url);
        self.allow(what, &url)?;
        Ok(url)
    }

    /// Upgrades a URL of the registry itself from `http` to `https`, if the region uses TLS: a registry behind a proxy
    /// that terminates TLS often does not know its own scheme.
    fn secured(&self, mut url: Url) -> Url {
        let base = &self.location.base;
        let is_own_host = url.host() == base.host() && (url.port().is_none() || url.port() == base.port());
        // The port is absent or the registry's own. Both setters succeed for an `http` URL.
        if url.scheme() == "http" && base.scheme() == "https" && is_own_host {
            let _ = url.set_scheme(base.scheme());
            let _ = url.set_port(base.port());
        }
        url
    }

    /// Rejects a URL that belongs neither to the registry nor to an allowed host.
    pub fn allow(&self, what: &str, url: &Url) -> Result<()> {
        let authority = authority(url);
        let listed = self.also_hosts.iter().any(|also| match also.strip_prefix("*.") {
            Some(domain) => authority.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
            None => *also == authority,
        });
        let secure = url.scheme() == "https" || url.scheme() == "http" && self.location.is_plain();
        let advice = if !url.username().is_empty() || url.password().is_some() {
            "which would be shown a name and a password that are not the region's; the registry has to leave them out"
        } else if !matches!(url.scheme(), "http" | "https") {
            "which can't be asked for; the registry has to name https, http or a path alone"
        } else if !secure {
            "without TLS, and the region is reached with it; the registry, or the proxy before it (X-Forwarded-Proto), has to name https or a path alone"
        } else if !self.is_own(url) && !listed && self.egress.check(url).is_err() {
            "which is an address that is never contacted; the registry has to give the content by itself"
        } else if !self.is_own(url) && !listed {
            "which is not the configured store; if that is right, name the host in the region's also_hosts"
        } else {
            return self.egress.check(url).map_err(|source| Error::Forbidden { what: what.into(), source });
        };
        let to = ForeignText::value(format_args!("{}://{authority}", url.scheme()));
        Err(Error::Elsewhere { what: what.into(), to, advice })
    }

    pub(super) fn is_own(&self, url: &Url) -> bool {
        let base = &self.location.base;
        url.scheme() == base.scheme()
            && url.host() == base.host()
            && url.port_or_known_default() == base.port_or_known_default()
    }
}

/// Returns whether a request with this response follows a redirect (RFC 9110, section 15.4). A write follows it only if
/// the method and the body stay the same.
pub fn leads_on(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => method == Method::GET || method == Method::HEAD,
        _ => false,
    }
}
