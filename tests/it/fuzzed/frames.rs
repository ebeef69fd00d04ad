//! HTTP/2 frames through the listener: whatever comes after the preface, the connection ends or answers, and another one is served.

use std::{net::SocketAddr, path::Path, time::Duration};

use appferry::app::Service;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    time::timeout,
};

use super::start;

/// The preface of HTTP/2, and settings that are empty (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A service, and where it listens.
pub struct Target {
    runtime: Runtime,
    address: SocketAddr,
    _service: Service,
}

impl Target {
    /// Starts a service in a directory.
    pub fn start(directory: &Path) -> Self {
        let runtime = start::runtime();
        let service = runtime.block_on(start::service(directory, ""));
        let address = service.address().expect("it listens");
        Self { runtime, address, _service: service }
    }

    /// Sends frames, in the form that a compact input has: a byte for the kind, one for the flags, one for the stream, one for the length of
    /// what follows.
    pub fn run(&mut self, data: &[u8]) {
        let mut sent = PREFACE.to_vec();
        let mut rest = data;
        while let [kind, flags, stream, length, more @ ..] = rest {
            let (payload, after) = more.split_at(more.len().min(usize::from(*length)));
            sent.extend([0, 0, u8::try_from(payload.len()).expect("it is a byte"), *kind, *flags, 0, 0, 0, *stream]);
            sent.extend(payload);
            rest = after;
        }
        self.runtime.block_on(async {
            let mut stream = TcpStream::connect(self.address).await.expect("it listens");
            let _ = stream.write_all(&sent).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let ended = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "the connection stays open");
            let mut other = TcpStream::connect(self.address).await.expect("it listens");
            other.write_all(PREFACE).await.expect("it is heard");
            let mut first = [0; 9];
            let served = timeout(Duration::from_secs(20), other.read_exact(&mut first)).await;
            assert!(matches!(served, Ok(Ok(_))), "others are not served");
        });
    }
}
