//! The SSRF guard: decides which addresses the service may connect to for a store.
//!
//! A name can be made to resolve to any address at any time. The guard therefore does not check the name, but every
//! resolved address, right before the connection.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use reqwest::dns::{Name, Resolve, Resolving};
use url::{Host, Url};

/// Resolves a name to its addresses.
pub type Lookup = dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Why the service does not connect to an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} leads to {address}, {what}, which is never contacted{hint}")]
pub struct Forbidden {
    host: String,
    address: IpAddr,
    what: &'static str,
    hint: &'static str,
}

/// Resolves names and rejects forbidden addresses.
#[derive(Clone)]
pub struct Guard {
    loopback: bool,
    shared: bool,
    lookup: Arc<Lookup>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Guard");
        shown.field("loopback", &self.loopback).field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Guard {
    /// Creates a guard that uses the system's resolver. Loopback addresses are allowed if `loopback` is set.
    #[must_use]
    pub fn new(loopback: bool) -> Self {
        Self::with_lookup(loopback, Arc::new(|name| Box::pin(system(name))))
    }

    /// Creates a guard that resolves names with `lookup`.
    #[must_use]
    pub fn with_lookup(loopback: bool, lookup: Arc<Lookup>) -> Self {
        Self { loopback, shared: false, lookup }
    }

    /// Returns the same guard, which allows shared address space (RFC 6598) if `shared` is set.
    #[must_use]
    pub fn with_shared(self, shared: bool) -> Self {
        Self { shared, ..self }
    }

    /// Fails if the URL's host is a forbidden address. Names are checked when they are resolved.
    pub fn check(&self, url: &Url) -> Result<(), Forbidden> {
        match url.host() {
            Some(Host::Ipv4(address)) => self.judge(url.host_str().unwrap_or_default(), address.into()),
            Some(Host::Ipv6(address)) => self.judge(url.host_str().unwrap_or_default(), address.into()),
            Some(Host::Domain(_)) | None => Ok(()),
        }
    }

    /// Returns a guard for a host that the configuration trusts: it also allows loopback and shared addresses.
    pub(super) fn trusting(self) -> Self {
        Self { loopback: true, shared: true, ..self }
    }

    pub(super) async fn look_up(&self, name: &str) -> std::io::Result<Vec<SocketAddr>> {
        (self.lookup)(name.to_owned()).await
    }

    /// Fails if any address of a name is forbidden. If a resolver returns one such address, the other addresses are not
    /// trusted either.
    pub(super) fn judge_all(&self, host: &str, addresses: &[SocketAddr]) -> Result<(), Forbidden> {
        addresses.iter().try_for_each(|address| self.judge(host, address.ip()))
    }

    fn judge(&self, host: &str, address: IpAddr) -> Result<(), Forbidden> {
        let loopback = ", unless the region's allow_loopback says so";
        let shared = ", unless the region's allow_shared says so";
        let refuse = |what, hint| Err(Forbidden { host: host.to_owned(), address, what, hint });
        match class(address) {
            Class::Loopback if !self.loopback => refuse("this machine itself", loopback),
            Class::Shared if !self.shared => refuse("an address that a provider shares among customers", shared),
            Class::Never(what) => refuse(what, ""),
            Class::Loopback | Class::Shared | Class::Fine => Ok(()),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let mut addresses = guard.look_up(name.as_str()).await?;
            guard.judge_all(name.as_str(), &addresses)?;
            addresses.dedup();
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

async fn system(name: String) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

enum Class {
    Fine,
    Loopback,
    Shared,
    Never(&'static str),
}

/// The addresses of cloud metadata services outside of the link-local range.
const METADATA: [IpAddr; 6] = [
    // Alibaba Cloud ECS.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Amazon EC2 over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Azure's platform endpoint, which is separate from its metadata service.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Google Compute Engine over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Oracle Cloud: the older IPv4 address, and the IPv6 address.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
];

/// Classifies an address (RFC 6890 and the registries it refers to).
fn class(address: IpAddr) -> Class {
    if METADATA.contains(&address) {
        return Class::Never("a metadata service");
    }
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => Class::Loopback,
        IpAddr::V4(v4) if v4.is_link_local() => Class::Never("a link-local address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Class::Never("no host's address"),
        IpAddr::V4(v4) if v4.is_multicast() || v4.octets()[0] >= 240 => Class::Never("no single host's address"),
        IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64 => Class::Shared,
        IpAddr::V4(_) => Class::Fine,
        IpAddr::V6(v6) if v6.is_loopback() => Class::Loopback,
        IpAddr::V6(v6) if v6.is_unspecified() => Class::Never("no host's address"),
        IpAddr::V6(v6) if v6.is_multicast() => Class::Never("no single host's address"),
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80 => Class::Never("a link-local address"),
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfec0 => Class::Never("a site-local address"),
        IpAddr::V6(v6) if is_tunnel(v6) => Class::Never("an address that leads through a tunnel or a translator"),
        IpAddr::V6(v6) => embedded(v6).map_or(Class::Fine, |v4| class(v4.into())),
    }
}

/// Returns whether an address leads to an IPv4 host through an obsolete or opaque mechanism: Teredo (RFC 4380), 6to4
/// (RFC 3056, deprecated by RFC 7526), or NAT64 with a network-specific prefix (RFC 8215).
fn is_tunnel(v6: Ipv6Addr) -> bool {
    matches!(v6.segments(), [0x2001, 0, ..] | [0x2002, ..] | [0x64, 0xff9b, 1, ..])
}

/// Returns the IPv4 address embedded in an IPv6 address: mapped, NAT64 with the well-known prefix (RFC 6052), or ISATAP
/// (RFC 5214).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Guard;

    #[test]
    fn no_spelling_of_a_forbidden_address_is_dialed() {
        for (url, loopback, forbidden) in [
            ("http://169.254.169.254/", true, true),
            ("http://2852039166/", true, true),
            ("http://0xa9.254.0251.254/", true, true),
            ("http://[::ffff:169.254.169.254]/", true, true),
            ("http://[64:ff9b::169.254.169.254]/", true, true),
            ("http://[2002:a9fe:a9fe::1]/", true, true),
            ("http://[2002:c000:201::1]/", true, true),
            ("http://[2001::a9fe:a9fe]/", true, true),
            ("http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", true, true),
            ("http://[64:ff9b:1::a9fe:a9fe]/", true, true),
            ("http://[64:ff9b:1:a9fe:a9:fe00::]/", true, true),
            ("http://[64:ff9b::7f00:1]/", false, true),
            ("http://[64:ff9b::c000:201]/", false, false),
            ("http://[2001:db8::5efe:a9fe:a9fe]/", true, true),
            ("http://168.63.129.16/", true, true),
            ("http://[::ffff:168.63.129.16]/", true, true),
            ("http://192.0.0.192/", true, true),
            ("http://[fd20:ce::254]/", true, true),
            ("http://[fd00:c1::a9fe:a9fe]/", true, true),
            ("http://[fec0::1]/", true, true),
            ("http://240.0.0.1/", true, true),
            ("http://100.64.0.1/", true, true),
            ("http://100.127.255.255/", true, true),
            ("http://100.128.0.1/", true, false),
            ("http://[fe80::1]/", true, true),
            ("http://[fd00:ec2::254]/", true, true),
            ("http://100.100.100.200/", true, true),
            ("http://0.0.0.0/", true, true),
            ("http://[::]/", true, true),
            ("http://224.0.0.1/", true, true),
            ("http://127.0.0.1/", false, true),
            ("http://127.8.9.1/", false, true),
            ("http://[::1]/", false, true),
            ("http://[::ffff:127.0.0.1]/", false, true),
            ("http://127.0.0.1/", true, false),
            ("http://10.0.0.1/", false, false),
            ("http://[2001:db8::1]/", false, false),
        ] {
            let refused = Guard::new(loopback).check(&url.parse().expect("a URL")).is_err();
            assert_eq!(refused, forbidden, "{url}");
        }
        let shared = Guard::new(false).with_shared(true);
        for (url, good) in
            [("http://100.64.0.1/", true), ("http://100.100.100.200/", false), ("http://127.0.0.1/", false)]
        {
            assert_eq!(shared.check(&url.parse().expect("a URL")).is_ok(), good, "{url}");
        }
    }
}
