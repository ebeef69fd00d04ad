//! Fuzz target for HTTP/2 frames: for any bytes after the preface, the service responds or closes the connection, and
//! still serves another connection.

use std::{path::Path, time::Duration};

use appferry::app::Service;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::start::Running;

/// The HTTP/2 connection preface and an empty SETTINGS frame (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A running service.
pub struct Target(Running);

impl Target {
    /// Starts a service whose files are in `directory`.
    pub fn start(directory: &Path) -> Self {
        Self(Running::start(directory, "", Service::address))
    }

    /// Sends the frames that the input encodes. A frame has one byte each for the type, the flags, the stream, and the
    /// length of the payload, which follows.
    pub fn run(&mut self, data: &[u8]) {
        let mut sent = PREFACE.to_vec();
        let mut rest = data;
        while let [kind, flags, stream, length, more @ ..] = rest {
            let (payload, after) = more.split_at(more.len().min(usize::from(*length)));
            sent.extend([0, 0, u8::try_from(payload.len()).expect("it is a byte"), *kind, *flags, 0, 0, 0, *stream]);
            sent.extend(payload);
            rest = after;
        }
        self.0.runtime.block_on(async {
            let mut stream = TcpStream::connect(self.0.address).await.expect("it listens");
            let _ = stream.write_all(&sent).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let ended = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "the connection stays open");
            let mut other = TcpStream::connect(self.0.address).await.expect("it listens");
            other.write_all(PREFACE).await.expect("it is sent");
            let mut first = [0; 9];
            let served = timeout(Duration::from_secs(20), other.read_exact(&mut first)).await;
            assert!(matches!(served, Ok(Ok(_))), "others are not served");
        });
    }
}
