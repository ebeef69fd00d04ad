//! An HTTP forward proxy for plain requests and for CONNECT. It records requests and resolves additional host names.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// Maximum size of a request head in bytes.
const MAX_HEAD: usize = 64 << 10;

/// A received request, which may be a CONNECT request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxiedRequest {
    pub method: String,
    /// The requested host and port.
    pub target: String,
    /// The header `Proxy-Authorization`.
    pub authorization: Option<String>,
}

/// An HTTP forward proxy. Stops when dropped.
pub struct RecordingProxy {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<ProxiedRequest>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for RecordingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RecordingProxy {
    /// Starts a proxy that maps the names in `hosts` to addresses.
    pub async fn start(hosts: &[(&str, SocketAddr)]) -> Self {
        Self::start_answering(hosts, "502 Bad Gateway").await
    }

    /// Starts a proxy that answers requests for any other host with this status.
    pub async fn start_answering(hosts: &[(&str, SocketAddr)], otherwise: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let hosts: HashMap<String, SocketAddr> = hosts.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        let (hosts, requests) = (Arc::new(hosts), Arc::<Mutex<Vec<ProxiedRequest>>>::default());
        let recorded = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(forward(stream, Arc::clone(&hosts), Arc::clone(&recorded), otherwise));
            }
        });
        Self { address, requests, task }
    }

    /// Returns the received requests.
    pub fn requests(&self) -> Vec<ProxiedRequest> {
        self.requests.lock().expect("no panic").clone()
    }

    /// Returns the key of `[network]` that makes a service use this proxy.
    pub fn key(&self) -> String {
        format!("proxy = \"http://{}\"", self.address)
    }
}

async fn forward(
    mut client: TcpStream,
    hosts: Arc<HashMap<String, SocketAddr>>,
    requests: Arc<Mutex<Vec<ProxiedRequest>>>,
    otherwise: &'static str,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok().filter(|_| head.len() < MAX_HEAD)?);
    }
    let text = String::from_utf8(head.clone()).ok()?;
    let (method, rest) = text.split_once(' ')?;
    let target = rest.split(' ').next()?;
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest
            .split('/')
            .next()
            .filter(|host| host.contains(':'))
            .map(str::to_owned)
            .or_else(|| Some(format!("{}:80", rest.split('/').next()?)))?,
        None => target.to_owned(),
    };
    let header = |line: &str| {
        Some(line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"))?.1.to_owned())
    };
    let authorization = text.lines().find_map(header);
    requests.lock().expect("no panic").push(ProxiedRequest {
        method: method.to_owned(),
        target: target.clone(),
        authorization,
    });
    let Some(address) = hosts.get(&target) else {
        let refusal = format!("HTTP/1.1 {otherwise}\r\ncontent-length: 0\r\n\r\n");
        return client.write_all(refusal.as_bytes()).await.ok();
    };
    let mut upstream = TcpStream::connect(address).await.ok()?;
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    } else {
        upstream.write_all(&head).await.ok()?;
    }
    copy_bidirectional(&mut client, &mut upstream).await.ok().map(drop)
}
