//! The section `[openapi]`: the HTTP form of the API.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{Error, server};

/// `[openapi]`: the listener of the HTTP form of the original API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenApi {
    /// The address to listen on.
    #[serde(deserialize_with = "server::address")]
    pub listen: SocketAddr,
}

impl OpenApi {
    /// Rejects invalid values.
    pub(super) fn check(&self, plaintext: bool) -> Result<(), Error> {
        server::check_reach("openapi.listen", self.listen, plaintext)
    }
}
