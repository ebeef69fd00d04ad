//! The hosts of this service: a request that was signed for another host is rejected.

use std::net::IpAddr;

/// Host names and addresses, each with a port or for all ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Creates a set of hosts; case is ignored. IPv6 addresses are in brackets.
    pub fn new(hosts: impl IntoIterator<Item = String>) -> Self {
        Self(hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    /// Creates a set of the local host's names and the given addresses.
    pub fn of_machine(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let named = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let addresses = addresses.into_iter().filter(|address| !address.is_unspecified());
        let addresses = addresses.map(|address| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        });
        Self::new(named.into_iter().chain(addresses))
    }

    /// Whether a `host` header or `:authority` names one of the hosts.
    #[must_use]
    pub fn include(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let name = match host.rsplit_once(':') {
            Some((name, port)) if is_port(port) => name,
            _ => &host,
        };
        self.0.iter().any(|own| *own == host || own == name)
    }
}

#[cfg(test)]
mod tests {
    use super::Hosts;

    #[test]
    fn hosts_match_by_name_and_port() {
        let hosts = Hosts::new(["Apps.example.com", "only.example.com:8080", "[fd00::1]"].map(str::to_owned));
        for own in ["apps.example.com", "APPS.example.com:443", "only.example.com:8080", "[FD00::1]:50051", "[fd00::1]"]
        {
            assert!(hosts.include(own), "{own}");
        }
        for other in [
            "",
            "example.com",
            "apps.example.com.",
            "apps.example.com.evil",
            "evil-apps.example.com",
            "only.example.com",
            "only.example.com:80",
            "apps.example.com:",
            "apps.example.com:x",
            "x@apps.example.com",
            "fd00::1",
            "[fd00::2]",
        ] {
            assert!(!hosts.include(other), "{other}");
        }
        let machine = Hosts::of_machine(["0.0.0.0", "10.1.2.3", "::"].map(|text| text.parse().expect("an address")));
        assert!(machine.include("localhost:1") && machine.include("10.1.2.3") && !machine.include("0.0.0.0"));
    }
}
