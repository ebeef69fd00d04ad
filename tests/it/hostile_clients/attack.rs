//! The attacks that hostile clients make on a process of the service.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::http2::{ACK, Connection, PING, frame, message};
use crate::harness::site::{READER, SYNC_ONLY};

/// How long an attacker waits for responses.
const SHORT: Duration = Duration::from_millis(20);

const SIGNED: &str = "ACS3-HMAC-SHA256 Credential=known,SignedHeaders=host,Signature=00";

/// A kind of attack. Attackers repeat an attack until the end of the test.
#[derive(Debug, Clone, Copy)]
pub enum Attack {
    /// Reflection requests whose responses are not read.
    Reflection,
    /// Calls with this credential whose messages never end.
    HalfSent(&'static str),
    /// Connections that send nothing.
    Silent,
    /// Connections that watch the health service.
    Watching,
    /// Unfinished form requests to the HTTP API, over HTTP/2.
    Forms,
    /// Unfinished request heads on both HTTP listeners.
    Heads,
    /// Large lists whose responses are not read, by an authorized principal.
    Unread,
    /// Acknowledgements of pings that were not sent.
    Acknowledgements,
    /// Invalid tokens.
    Guessing,
}

pub const ATTACKS: [Attack; 11] = [
    Attack::Reflection,
    Attack::HalfSent("ACS3-HMAC-SHA256 Credential=x,SignedHeaders=host,Signature=00"),
    Attack::HalfSent(SIGNED),
    Attack::HalfSent(SYNC_ONLY),
    Attack::Silent,
    Attack::Watching,
    Attack::Forms,
    Attack::Heads,
    Attack::Unread,
    Attack::Acknowledgements,
    Attack::Guessing,
];

/// The addresses on which a process listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub grpc: SocketAddr,
    pub form: SocketAddr,
    pub http: SocketAddr,
}

/// The connections that an attacker keeps open. Old connections are dropped when there are too many.
#[derive(Default)]
pub struct OpenConnections {
    connections: Vec<Connection>,
    sockets: Vec<TcpStream>,
}

impl OpenConnections {
    fn connection(&mut self, connection: Connection) {
        self.connections.push(connection);
        let old = self.connections.len().saturating_sub(32);
        self.connections.drain(..old);
    }

    fn socket(&mut self, socket: TcpStream) {
        self.sockets.push(socket);
        let old = self.sockets.len().saturating_sub(256);
        self.sockets.drain(..old);
    }
}

impl Attack {
    /// Makes the attack once. Adds its connections to `open`, which keeps them open.
    pub async fn once(self, addresses: Addresses, open: &mut OpenConnections) {
        match self {
            Self::Reflection => request_reflection(addresses, open).await,
            Self::HalfSent(credential) => half_send(addresses, open, credential).await,
            Self::Silent => connect_silently(addresses, open).await,
            Self::Watching => watch_health(addresses, open).await,
            Self::Forms => send_forms(addresses, open).await,
            Self::Heads => send_heads(addresses, open).await,
            Self::Unread => list_without_reading(addresses, open).await,
            Self::Acknowledgements => acknowledge_pings(addresses).await,
            Self::Guessing => guess(addresses).await,
        }
    }
}

async fn request_reflection(addresses: Addresses, open: &mut OpenConnections) {
    let mut connection = Connection::open(addresses.grpc, 0).await;
    let question = [&[0x0a, 0xf0, 0xff, 0x03][..], &vec![b'x'; 65_520]].concat();
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    for _ in 0..64 {
        let stream = connection.call(path, &[("x-long", &"y".repeat(14_000))]).await;
        for piece in message(&question).chunks(16_000) {
            connection.data(stream, piece, false).await;
        }
        connection.listen(Duration::from_millis(2), |_| false).await;
    }
    open.connection(connection);
}

async fn half_send(addresses: Addresses, open: &mut OpenConnections, credential: &str) {
    let mut connection = Connection::open(addresses.grpc, 65_535).await;
    let bearer = format!("Bearer {credential}");
    let credential = if credential == SYNC_ONLY { &bearer } else { credential };
    for _ in 0..128 {
        let headers = [("authorization", credential), ("grpc-timeout", "9999S")];
        let stream = connection.call("/appferry.v1.ImageService/GetImage", &headers).await;
        connection.data(stream, &[0, 0, 1, 0, 0, 1, 2, 3], false).await;
    }
    connection.listen(SHORT, |_| false).await;
    open.connection(connection);
}

async fn connect_silently(addresses: Addresses, open: &mut OpenConnections) {
    for _ in 0..10 {
        if let Ok(socket) = TcpStream::connect(addresses.grpc).await {
            open.socket(socket);
        }
    }
}

async fn watch_health(addresses: Addresses, open: &mut OpenConnections) {
    for _ in 0..5 {
        let mut connection = Connection::open(addresses.grpc, 65_535).await;
        let stream = connection.call("/grpc.health.v1.Health/Watch", &[]).await;
        connection.data(stream, &[0, 0, 0, 0, 0], true).await;
        connection.listen(SHORT, |_| false).await;
        open.connection(connection);
    }
}

async fn send_forms(addresses: Addresses, open: &mut OpenConnections) {
    let mut connection = Connection::open(addresses.form, 65_535).await;
    for _ in 0..100 {
        let stream = connection.call("/", &[("x-acs-action", "GetImage")]).await;
        for piece in vec![b'a'; 48_000].chunks(16_000) {
            connection.data(stream, piece, false).await;
        }
        connection.listen(Duration::from_millis(1), |_| false).await;
    }
    open.connection(connection);
}

async fn send_heads(addresses: Addresses, open: &mut OpenConnections) {
    for address in [addresses.form, addresses.http].repeat(10) {
        if let Ok(mut socket) = TcpStream::connect(address).await {
            let _ = socket.write_all(&[b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &[b'a'; 8_000][..]].concat()).await;
            open.socket(socket);
        }
    }
}

async fn list_without_reading(addresses: Addresses, open: &mut OpenConnections) {
    let mut connection = Connection::open(addresses.grpc, 0).await;
    for _ in 0..32 {
        // Asks for a page of a thousand entries.
        connection.ask("/appferry.v1.ImageService/ListImages", READER, &[8, 0xe8, 0x07]).await;
    }
    connection.listen(Duration::from_millis(200), |_| false).await;
    open.connection(connection);
}

async fn acknowledge_pings(addresses: Addresses) {
    let mut connection = Connection::open(addresses.grpc, 65_535).await;
    connection.send(&frame(PING, ACK, 0, &[0; 8]).repeat(3_000)).await;
    connection.listen(SHORT, |_| false).await;
}

async fn guess(addresses: Addresses) {
    let Ok(mut socket) = TcpStream::connect(addresses.http).await else { return };
    let ask =
        "GET /api/regions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\nConnection: close\r\n\r\n";
    let _ = socket.write_all(ask.as_bytes()).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), socket.read(&mut [0; 100])).await;
}
