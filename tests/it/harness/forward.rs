//! An HTTP forward proxy, for plain requests and for CONNECT, that resolves additional host names.

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

/// A received request or CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// The requested host and port.
    pub target: String,
    /// The header `Proxy-Authorization`.
    pub authorization: Option<String>,
}

/// An HTTP forward proxy. Stops when dropped.
pub struct Forward {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forward {
    /// Starts a proxy that maps the names in `known` to addresses.
    pub async fn start(known: &[(&str, SocketAddr)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let known: HashMap<String, SocketAddr> = known.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        let (known, asked) = (Arc::new(known), Arc::<Mutex<Vec<Asked>>>::default());
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, Arc::clone(&known), Arc::clone(&seen)));
            }
        });
        Self { address, asked, task }
    }

    /// Returns the received requests.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }

    /// Returns the key of `[network]` that configures it.
    pub fn key(&self) -> String {
        format!("proxy = \"http://{}\"", self.address)
    }
}

async fn pass(
    mut client: TcpStream,
    known: Arc<HashMap<String, SocketAddr>>,
    seen: Arc<Mutex<Vec<Asked>>>,
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
    seen.lock().expect("no panic").push(Asked { method: method.to_owned(), target: target.clone(), authorization });
    let Some(address) = known.get(&target) else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await.ok();
    };
    let mut upstream = TcpStream::connect(address).await.ok()?;
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    } else {
        upstream.write_all(&head).await.ok()?;
    }
    copy_bidirectional(&mut client, &mut upstream).await.ok().map(drop)
}
