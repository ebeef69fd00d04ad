//! Caller addresses that trusted proxies report: in a header of each call, `forwarded` (RFC 7239) or `x-forwarded-for`,
//! or at the start of a connection (PROXY protocol, version 2). Headers of other addresses are ignored.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use http::{HeaderMap, HeaderName, header::FORWARDED};
use ipnet::IpNet;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::timeout,
};

/// Longest time for the PROXY protocol's header to arrive.
const ARRIVAL: Duration = Duration::from_secs(5);
/// First bytes of the PROXY protocol's header (version 2, section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Maximum size of the variable part of the PROXY header (addresses and extensions), in bytes.
const MAX_VARIABLE_BYTES: usize = 1_024;

/// The header in which a proxy reports the caller's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `forwarded` (RFC 7239).
    #[default]
    Forwarded,
    /// `x-forwarded-for`.
    XForwardedFor,
}

/// The trusted proxies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proxies {
    /// Networks of the proxies' addresses.
    pub networks: Vec<IpNet>,
    /// The header that the proxies set.
    pub header: ForwardedHeader,
    /// Whether the proxies' connections begin with the header of the PROXY protocol.
    pub protocol: bool,
}

impl Proxies {
    /// Whether an address belongs to a trusted proxy.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Returns the caller's address that a proxy at `peer` reports: the last address in the header that does not belong
    /// to a trusted proxy. Addresses before it were not set by a trusted proxy.
    #[must_use]
    pub fn forwarded(&self, headers: &HeaderMap, peer: IpAddr) -> Option<IpAddr> {
        let (name, address): (HeaderName, fn(&str) -> Option<IpAddr>) = match self.header {
            ForwardedHeader::Forwarded => (FORWARDED, element),
            ForwardedHeader::XForwardedFor => (HeaderName::from_static("x-forwarded-for"), node),
        };
        let mut caller = None;
        if !self.trusts(peer) {
            return caller;
        }
        // Read from the end: proxies append, so that no text which a caller has sent changes how later elements are
        // split.
        for value in headers.get_all(name).iter().rev() {
            for reported in value.to_str().ok()?.rsplit(',') {
                let Some(address) = address(reported.trim()) else { return caller };
                caller = Some(address);
                if !self.trusts(address) {
                    return caller;
                }
            }
        }
        caller
    }
}

/// Returns the `for` parameter of an element of `forwarded`.
fn element(text: &str) -> Option<IpAddr> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    let mut nodes = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = nodes.next()?;
    if nodes.next().is_some() {
        return None;
    }
    node(value.trim().trim_matches('"'))
}

/// Parses an address, with or without a port (RFC 7239, section 6). Returns `None` for an obfuscated name.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// Reads the header of the PROXY protocol. Returns `None` for a LOCAL connection: the proxy's own health check.
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    timeout(ARRIVAL, read_header_untimed(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read_header_untimed(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem.to_owned());
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await?;
    let [head @ .., command, family, high, low] = fixed;
    if head != *SIGNATURE {
        return Err(invalid("the connection does not begin with the header of the PROXY protocol, version 2"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_VARIABLE_BYTES {
        return Err(invalid("the header of the PROXY protocol is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match (command, family) {
        (0x20, _) => Ok(None),
        (0x21, 0x11) => {
            let source: [u8; 4] = rest
                .get(..4)
                .and_then(|bytes| bytes.try_into().ok())
                .filter(|_| length >= 12)
                .ok_or_else(|| invalid("the addresses in the header of the PROXY protocol are too short"))?;
            Ok(Some(Ipv4Addr::from(source).into()))
        }
        (0x21, 0x21) => {
            let source: [u8; 16] = rest
                .get(..16)
                .and_then(|bytes| bytes.try_into().ok())
                .filter(|_| length >= 36)
                .ok_or_else(|| invalid("the addresses in the header of the PROXY protocol are too short"))?;
            Ok(Some(IpAddr::from(Ipv6Addr::from(source)).to_canonical()))
        }
        _ => Err(invalid("the command or address family in the header of the PROXY protocol is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::HeaderMap;

    use super::{ForwardedHeader, Proxies, read_header};

    fn proxies(header: ForwardedHeader) -> Proxies {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network")).to_vec();
        Proxies { networks, header, protocol: false }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_last_address_of_no_proxy_is_the_callers() {
        let reported = |values: &[&str], peer: &str| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("forwarded", value.parse().expect("a value"));
            }
            proxies(ForwardedHeader::Forwarded).forwarded(&headers, address(peer))
        };
        assert_eq!(reported(&["for=192.0.2.1"], "10.1.2.3"), Some(address("192.0.2.1")));
        assert_eq!(reported(&["for=192.0.2.1"], "192.0.2.9"), None, "an untrusted peer is ignored");
        assert_eq!(reported(&["for=198.51.100.7, for=192.0.2.1;proto=https"], "10.1.2.3"), Some(address("192.0.2.1")));
        assert_eq!(
            reported(&["For=\"[2001:db8::1]:4711\";by=10.1.2.3, for=10.9.9.9"], "fd00::1"),
            Some(address("2001:db8::1"))
        );
        assert_eq!(reported(&["for=198.51.100.7", "for=192.0.2.1:80"], "10.1.2.3"), Some(address("192.0.2.1")));
        // An unbalanced quote of the caller does not hide the proxy's element.
        assert_eq!(reported(&["for=\"a, for=192.0.2.1"], "10.1.2.3"), Some(address("192.0.2.1")));
        assert_eq!(reported(&["for=_hidden, for=10.2.2.2"], "10.1.2.3"), Some(address("10.2.2.2")));
        assert_eq!(reported(&["for=192.0.2.1;for=192.0.2.2"], "10.1.2.3"), None);
        assert_eq!(reported(&[], "10.1.2.3"), None);
    }

    #[test]
    fn only_the_configured_header_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert("forwarded", "for=198.51.100.7".parse().expect("a value"));
        headers.insert("x-forwarded-for", "198.51.100.8, 192.0.2.1".parse().expect("a value"));
        let found = proxies(ForwardedHeader::XForwardedFor).forwarded(&headers, address("10.1.2.3"));
        assert_eq!(found, Some(address("192.0.2.1")));
    }

    #[tokio::test]
    async fn the_header_of_the_proxy_protocol_is_parsed() {
        let header = |command: u8, family: u8, rest: &[u8]| {
            let length = u16::try_from(rest.len()).expect("it is short").to_be_bytes();
            [super::SIGNATURE, &[command, family][..], &length, rest].concat()
        };
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 1, 2, 3, 4];
        let mut v6 = [0; 40];
        v6[..16].copy_from_slice(&"2001:db8::1".parse::<std::net::Ipv6Addr>().expect("an address").octets());
        for (bytes, expected) in [
            (header(0x21, 0x11, &v4), Ok(Some("192.0.2.1"))),
            (header(0x21, 0x21, &v6), Ok(Some("2001:db8::1"))),
            (header(0x20, 0x00, b""), Ok(None)),
            (header(0x21, 0x11, &v4[..11]), Err(())),
            (header(0x21, 0x31, &v4), Err(())),
            (header(0x22, 0x11, &v4), Err(())),
            (header(0x21, 0x11, &[0; 1_025]), Err(())),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Err(())),
        ] {
            let mut stream = &[&bytes[..], b"rest"].concat()[..];
            let read = read_header(&mut stream).await.map_err(drop);
            assert_eq!(read, expected.map(|text| text.map(address)), "{bytes:?}");
            assert!(read.is_err() || stream == b"rest", "only the header is consumed");
        }
    }
}
