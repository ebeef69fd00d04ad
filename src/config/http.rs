//! `[http]`.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{Error, server};

/// `[http]`: the listener for probes, for Prometheus, and, on servers, for the status page.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where to listen.
    #[serde(deserialize_with = "server::address")]
    pub listen: SocketAddr,
    /// Whether others may reach it. Metrics tell regions, methods and numbers, and are told to everybody who asks; the status
    /// page wants a credential, which it takes from other machines only with `server.allow_plaintext`.
    #[serde(default)]
    pub allow_remote: bool,
}

impl Http {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.listen.ip().is_loopback() || self.allow_remote {
            return Ok(());
        }
        let problem = format!(
            "{} can be reached by others, who would be told all metrics: set http.allow_remote = true",
            self.listen
        );
        Err(super::value("http.listen", problem))
    }
}
