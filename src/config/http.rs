//! The section `[http]`: probes, metrics and the status page.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{Error, server};

/// `[http]`: the admin listener for probes and Prometheus, and on servers for the status page.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The address to listen on.
    #[serde(deserialize_with = "server::address")]
    pub listen: SocketAddr,
    /// Whether a non-loopback address is allowed. Metrics, with the names of regions and methods, are served without
    /// authentication. The status page requires a credential, which it accepts from other machines only with
    /// `server.allow_plaintext`.
    #[serde(default)]
    pub allow_remote: bool,
}

impl Http {
    /// Rejects invalid values.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.listen.ip().is_loopback() || self.allow_remote {
            return Ok(());
        }
        let problem = format!(
            "{} is reachable from other machines, and metrics are served without authentication; listen on a loopback \
             address or set http.allow_remote = true",
            self.listen
        );
        Err(super::invalid("http.listen", problem))
    }
}
