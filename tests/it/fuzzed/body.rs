//! Fuzz target for request messages that a client sends to a running service. The service answers every input with a
//! status of the contract, never with an unexpected error.

use std::{net::SocketAddr, path::Path};

use appferry::app::Service;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::start::{Running, TOKEN};

const METHODS: [&str; 8] = [
    "AppSyncService/SynchronizeApp",
    "AppSyncService/GetSynchronization",
    "AppSyncService/ListSynchronizations",
    "AppSyncService/CancelSynchronization",
    "ImageService/AddImage",
    "ImageService/GetImage",
    "ImageService/ListImages",
    "ImageService/RemoveImage",
];

/// A service and an HTTP/2 connection to it.
pub struct Target {
    running: Running,
    sender: SendRequest<Full<Bytes>>,
}

async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

impl Target {
    /// Starts a service whose files are in `directory`.
    pub fn start(directory: &Path) -> Self {
        let running = Running::start(directory, "", Service::address);
        let sender = running.runtime.block_on(connect(running.address));
        Self { running, sender }
    }

    /// Sends the input in a call. Its first byte selects the method, and whether the rest is sent raw or as one
    /// message.
    pub fn run(&mut self, data: &[u8]) {
        let Some((first, message)) = data.split_first() else { return };
        let method = METHODS[usize::from(*first) % METHODS.len()];
        let framed = if *first >= 128 {
            message.to_vec()
        } else {
            let length = u32::try_from(message.len()).expect("it is short");
            [&[0][..], &length.to_be_bytes(), message].concat()
        };
        let request = Request::post(format!("http://{}/appferry.v1.{method}", self.running.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(Full::new(Bytes::from(framed)))
            .expect("a request");
        let status = self.running.runtime.block_on(async {
            if self.sender.is_closed() {
                self.sender = connect(self.running.address).await;
            }
            let response = self.sender.send_request(request).await.expect("an answer");
            let (head, body) = response.into_parts();
            let collected = body.collect().await.expect("a whole answer");
            let trailers = collected.trailers().and_then(|trailers| trailers.get("grpc-status"));
            let status = head.headers.get("grpc-status").or(trailers).expect("a status");
            status.to_str().expect("text").parse::<u16>().expect("a number")
        });
        // UNKNOWN (2) and INTERNAL (13) would report an error of the service, which no input of a caller may cause.
        assert!(![2, 13].contains(&status), "{method} is answered {status}");
    }
}
