//! Test request to a proxy. It determines whether the proxy or the target is at fault when a store can't be reached,
//! because the HTTP client only reports that there is no connection.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use domain::ForeignText;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use url::Url;

use super::ForwardProxy;
use crate::server_trust;

/// The time limit for the connection and the response together.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of bytes read from the response's head.
const MAX_HEAD: usize = 8 << 10;

/// The result of a test request through a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyTrial {
    /// The proxy connected to the target, or the target responded.
    Passes,
    /// The proxy itself can't be reached, or does not speak HTTP.
    Unreachable(ForeignText),
    /// The proxy requires another user name and password (RFC 9110, section 15.5.8).
    WantsLogin,
    /// The proxy rejected the request with this status.
    Refuses(u16),
    /// The proxy could not reach the target, and responded with this status.
    TargetUnreachable(u16),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl ForwardProxy {
    /// Requests the target through the proxy: opens a tunnel (RFC 9110, section 9.3.6), or requests the root path if
    /// the target does not use TLS. Closes the connection afterwards.
    pub async fn try_to_reach(&self, target: &Url) -> ProxyTrial {
        let status = match timeout(PATIENCE, self.ask_for(target)).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return ProxyTrial::Unreachable(ForeignText::value(error)),
            Err(_) => return ProxyTrial::Unreachable("it does not answer".into()),
        };
        match status {
            407 => ProxyTrial::WantsLogin,
            502..=504 => ProxyTrial::TargetUnreachable(status),
            200..300 => ProxyTrial::Passes,
            // Without a tunnel, this may be the target's own status.
            _ if target.scheme() == "http" => ProxyTrial::Passes,
            status => ProxyTrial::Refuses(status),
        }
    }

    /// Sends the request and returns the status of the response.
    async fn ask_for(&self, target: &Url) -> io::Result<u16> {
        let mut stream = self.connect().await?;
        let host = target.host_str().unwrap_or_default();
        let authority = format!("{host}:{}", target.port_or_known_default().unwrap_or(443));
        let login = self.login().map(|(username, password)| {
            format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{username}:{password}")))
        });
        let line = match target.scheme() {
            "http" => format!("GET http://{authority}/"),
            _ => format!("CONNECT {authority}"),
        };
        let login = login.unwrap_or_default();
        let request = format!("{line} HTTP/1.1\r\nHost: {authority}\r\n{login}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        while !head.contains(&b'\n') && head.len() < MAX_HEAD {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        status(&head).ok_or_else(|| io::Error::other("it does not answer as an HTTP proxy does"))
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let url = self.url();
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, url.port_or_known_default().unwrap_or(80))).await?;
        if url.scheme() != "https" {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        let trust = Arc::new(server_trust::system().map_err(io::Error::other)?);
        Ok(Box::new(TlsConnector::from(trust).connect(name, tcp).await?))
    }
}

/// Parses the status from the first line of a response (RFC 9112, section 4).
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let rest = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::status;

    #[test]
    fn a_status_is_read_from_the_first_line() {
        for (head, expected) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n", Some(407)),
            ("HTTP/1.0 200\r\n", Some(200)),
            ("HTTP/1.1 99 x\r\n", None),
            ("SSH-2.0-OpenSSH_9.2\r\n", None),
            ("HTTP/1.1\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(head.as_bytes()), expected, "{head:?}");
        }
    }
}
