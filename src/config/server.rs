//! The section `[server]`: the gRPC listener.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Error, invalid, positive};
use crate::server::{ForwardedHeader, Proxies};

/// The maximum of `drain_seconds`.
const MAX_DRAIN: u64 = 3_600;

/// `[server]`: the gRPC listener and the limits of all listeners.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The address to listen on.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// The hosts, each with or without a port, for which requests signed with an access key are accepted. If empty, the
    /// names of this machine and the addresses that it listens on.
    pub hosts: Vec<String>,
    /// Whether a listener on a non-loopback address may do without TLS.
    pub allow_plaintext: bool,
    /// The limit of concurrent calls; further ones are rejected. A stream counts until it has started.
    pub max_in_flight: usize,
    /// The limit of connections of each listener. A further connection replaces the least used one: one without an
    /// authenticated caller, or else one without an authenticated call in progress. If there is none, the new
    /// connection waits.
    pub max_connections: usize,
    /// The limit of connections of one source: an IPv4 address or an IPv6 network of 64 bits. Trusted proxies are not
    /// limited.
    pub max_connections_per_source: usize,
    /// The networks of trusted proxies, for example `10.0.0.0/8`. The client address that they report is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The header with the client address in each call of a trusted proxy: `forwarded` (RFC 7239) or `x-forwarded-for`.
    /// The proxy must set it itself, because the value is believed.
    pub forwarded_header: ForwardedHeader,
    /// Whether connections of trusted proxies start with a header of the PROXY protocol, version 2, with the client
    /// address.
    pub proxy_protocol: bool,
    /// The limit of concurrent streams of a connection.
    pub max_streams_per_connection: u32,
    /// The lifetime of a connection, in seconds, with a jitter of 10 %; then GOAWAY asks its client to open another.
    pub max_connection_age_seconds: u64,
    /// How long a connection may be idle, in seconds.
    pub max_connection_idle_seconds: u64,
    /// The deadline of a call without one, in seconds.
    pub default_deadline_seconds: u64,
    /// The longest deadline of a call, in seconds.
    pub max_deadline_seconds: u64,
    /// The lifetime of a stream, in seconds; its client reconnects and misses nothing.
    pub max_stream_seconds: u64,
    /// How long calls are still accepted after the service reports that it is not ready, in seconds: load balancers
    /// need a moment to notice.
    pub drain_seconds: u64,
    /// The time limit of the shutdown after `drain_seconds` have passed, in seconds.
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
    /// Returns the trusted proxies.
    #[must_use]
    pub fn proxies(&self) -> Proxies {
        let (networks, header) = (self.trusted_proxies.clone(), self.forwarded_header);
        Proxies { networks, header, protocol: self.proxy_protocol }
    }

    /// Rejects invalid values.
    pub(super) fn check(&self, tls: bool) -> Result<(), Error> {
        check_reach("server.listen", self.listen, self.allow_plaintext || tls)?;
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            let problem = "needs server.trusted_proxies, which is empty";
            return Err(invalid("server.proxy_protocol", problem));
        }
        if self.drain_seconds > MAX_DRAIN {
            return Err(invalid("server.drain_seconds", format!("{} is more than {MAX_DRAIN}", self.drain_seconds)));
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

/// Rejects an address that is reachable from other machines, unless `is_allowed` is set because the traffic is
/// encrypted or may be unencrypted.
pub(super) fn check_reach(key: &str, listen: SocketAddr, is_allowed: bool) -> Result<(), Error> {
    if listen.ip().is_loopback() || is_allowed {
        return Ok(());
    }
    Err(invalid(
        key,
        format!(
            "{listen} is reachable from other machines, and its traffic would not be encrypted; configure [tls], listen on \
             a loopback address behind a TLS proxy, or set server.allow_plaintext = true"
        ),
    ))
}

/// Deserializes an address. The error contains the value.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not of the form IP:PORT")))
}
