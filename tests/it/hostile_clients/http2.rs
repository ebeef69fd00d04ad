//! A minimal HTTP/2 client that sends single frames, so that tests can send sequences that no real client produces.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// Frame types (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// Returns an encoded HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns an encoded, uncompressed gRPC message with its length prefix.
pub fn message(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("it is short").to_be_bytes();
    [&[0], &length[..], content].concat()
}

/// An HTTP/2 connection. The only frames that it sends by itself are acknowledgements of SETTINGS.
pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    next: u32,
    /// The ended streams. The value is the error code if the server reset the stream.
    pub ended: BTreeMap<u32, Option<u32>>,
    /// Number of received DATA bytes by stream.
    pub received: BTreeMap<u32, usize>,
    /// Whether the server has sent GOAWAY.
    pub told_to_go: bool,
    /// Whether the connection has ended.
    pub closed: bool,
}

impl Connection {
    /// Connects to a server, and grants it a flow-control window of `window` bytes per stream.
    pub async fn open(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let mut connection = Self {
            stream,
            unread: Vec::new(),
            next: 1,
            ended: BTreeMap::new(),
            received: BTreeMap::new(),
            told_to_go: false,
            closed: false,
        };
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        connection.send(&frame(SETTINGS, 0, 0, &settings)).await;
        connection
    }

    /// Sends bytes. If that fails, marks the connection as closed.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.closed |= self.stream.write_all(bytes).await.is_err();
    }

    /// Opens a stream for a call, and returns its id.
    pub async fn call(&mut self, path: &str, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let fixed = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let mut block = Vec::new();
        for (name, value) in fixed.iter().chain(headers) {
            // Encodes a literal header field without indexing, with a literal name (RFC 7541, section 6.2.2).
            block.push(0);
            for text in [name, value] {
                length(&mut block, text.len());
                block.extend(text.bytes());
            }
        }
        self.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
        stream
    }

    /// Sends a DATA frame on a stream, with `END_STREAM` if `end` is true.
    pub async fn data(&mut self, stream: u32, bytes: &[u8], end: bool) {
        self.send(&frame(DATA, if end { END_STREAM } else { 0 }, stream, bytes)).await;
    }

    /// Sends a complete call with a token. Returns the id of its stream.
    pub async fn ask(&mut self, path: &str, token: &str, content: &[u8]) -> u32 {
        let token = format!("Bearer {token}");
        let stream = self.call(path, &[("authorization", &token)]).await;
        self.data(stream, &message(content), true).await;
        stream
    }

    /// Receives frames until `until` holds or the connection is closed, for at most `limit`. Returns whether `until`
    /// holds.
    pub async fn listen(&mut self, limit: Duration, until: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !until(self) && !self.closed {
            let mut bytes = vec![0; 16_384];
            match timeout_at(end, self.stream.read(&mut bytes)).await {
                Ok(Ok(0) | Err(_)) => self.closed = true,
                Ok(Ok(read)) => {
                    self.unread.extend(&bytes[..read]);
                    self.take().await;
                }
                Err(_) => break,
            }
        }
        until(self)
    }

    async fn take(&mut self) {
        while let [a, b, c, kind, flags, rest @ ..] = &self.unread[..] {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some((stream, payload)) = rest.get(..4).zip(rest.get(4..4 + length)) else { break };
            let stream = u32::from_be_bytes(stream.try_into().expect("four bytes")) & 0x7fff_ffff;
            let (kind, flags, payload) = (*kind, *flags, payload.to_vec());
            self.unread.drain(..9 + length);
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[])).await,
                RST_STREAM => {
                    let code = payload.try_into().map(u32::from_be_bytes).expect("a code");
                    self.ended.entry(stream).or_insert(Some(code));
                }
                GOAWAY => self.told_to_go = true,
                DATA => *self.received.entry(stream).or_default() += payload.len(),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                self.ended.entry(stream).or_insert(None);
            }
        }
    }
}

/// Appends the length of a string that is not Huffman-coded (RFC 7541, section 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(u8::try_from(length).expect("it is less than 127"));
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).expect("it is less than 128") | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).expect("it is less than 128"));
}
