//! `[server]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Error, positive, value};
use crate::server::{ForwardedHeader, Proxies};

/// The longest time to drain, in seconds.
const MAX_DRAIN: u64 = 3_600;

/// `[server]`: the gRPC listener and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Where to listen.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// The hosts that it is called by, each with a port or for any: a request that is signed with an access key is taken for these alone.
    /// Without any, for the names of this machine and the addresses that it listens at.
    pub hosts: Vec<String>,
    /// Whether a listener that others can reach may do without TLS.
    pub allow_plaintext: bool,
    /// Calls that are carried out at the same time; one more is refused. Streams count until they have begun.
    pub max_in_flight: usize,
    /// Connections that may be open at each listener. For the next one, that gives way which is least in use: one on which nobody has proved
    /// who calls, or else one without an authenticated call in progress; if there is none, the next waits.
    pub max_connections: usize,
    /// Those of one source, an IPv4 address or a network of IPv6 of 64 bits. Proxies that are trusted have any number.
    pub max_connections_per_source: usize,
    /// Networks of proxies that are believed when they say for whom they call, like `10.0.0.0/8`.
    pub trusted_proxies: Vec<IpNet>,
    /// The header by which they say it, of every call: `forwarded` (RFC 7239) or `x-forwarded-for`. They must add it themselves, since
    /// what they pass on is believed.
    pub forwarded_header: ForwardedHeader,
    /// Whether their connections begin with the header of the PROXY protocol, version 2, which says for whom.
    pub proxy_protocol: bool,
    /// Streams that one connection may have open.
    pub max_streams_per_connection: u32,
    /// How long a connection may last, in seconds, a tenth more or less; then its client is told to open another.
    pub max_connection_age_seconds: u64,
    /// How long a connection may last without a call, in seconds.
    pub max_connection_idle_seconds: u64,
    /// The deadline of a call that names none, in seconds.
    pub default_deadline_seconds: u64,
    /// The latest deadline of a call, in seconds.
    pub max_deadline_seconds: u64,
    /// The longest life of a stream, in seconds; its client connects again and has lost nothing.
    pub max_stream_seconds: u64,
    /// How long calls are still taken after the service has said that it is not ready any more, in seconds: whoever sends calls to it needs a
    /// moment to hear of that.
    pub drain_seconds: u64,
    /// How long a shutdown may take after that, in seconds.
    pub shutdown_seconds: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 50051),
            hosts: Vec::new(),
            allow_plaintext: false,
            max_in_flight: 1_024,
            max_connections: 16_384,
            max_connections_per_source: 1_024,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            proxy_protocol: false,
            max_streams_per_connection: 256,
            max_connection_age_seconds: 3_600,
            max_connection_idle_seconds: 900,
            default_deadline_seconds: 30,
            max_deadline_seconds: 60,
            max_stream_seconds: 3_600,
            drain_seconds: 0,
            shutdown_seconds: 20,
        }
    }
}

impl Server {
    /// The proxies that are believed.
    #[must_use]
    pub fn proxies(&self) -> Proxies {
        let (networks, header) = (self.trusted_proxies.clone(), self.forwarded_header);
        Proxies { networks, header, protocol: self.proxy_protocol }
    }

    /// Refuses what can't be used.
    pub(super) fn check(&self, tls: bool) -> Result<(), Error> {
        check_reach("server.listen", self.listen, self.allow_plaintext || tls)?;
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            let problem = "only those in server.trusted_proxies are believed, and there are none";
            return Err(value("server.proxy_protocol", problem));
        }
        if self.drain_seconds > MAX_DRAIN {
            return Err(value("server.drain_seconds", format!("{} is over {MAX_DRAIN}", self.drain_seconds)));
        }
        positive(
            "server",
            &[
                ("max_in_flight", self.max_in_flight as u64),
                ("max_connections", self.max_connections as u64),
                ("max_connections_per_source", self.max_connections_per_source as u64),
                ("max_connection_age_seconds", self.max_connection_age_seconds),
                ("max_connection_idle_seconds", self.max_connection_idle_seconds),
                ("max_streams_per_connection", self.max_streams_per_connection.into()),
                ("default_deadline_seconds", self.default_deadline_seconds),
                ("max_deadline_seconds", self.max_deadline_seconds),
                ("max_stream_seconds", self.max_stream_seconds),
                ("shutdown_seconds", self.shutdown_seconds),
            ],
        )
    }
}

/// Refuses an address that others can reach, unless what is said there may travel in clear or does not.
pub(super) fn check_reach(key: &str, listen: SocketAddr, may: bool) -> Result<(), Error> {
    if listen.ip().is_loopback() || may {
        return Ok(());
    }
    Err(value(
        key,
        format!(
            "{listen} can be reached by others, and what is said there would travel in clear: configure [tls], listen on a loopback \
             address behind something that speaks TLS, or set server.allow_plaintext = true"
        ),
    ))
}

/// Reads an address, and repeats what is none.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not of the form IP:PORT")))
}
