//! A TCP proxy in front of a database server. A test can change its upstream and cut its connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A TCP proxy. Runs until the runtime ends.
#[derive(Debug, Clone)]
pub struct TcpProxy {
    pub address: SocketAddr,
    upstream: Arc<AtomicU16>,
    connections: Arc<AtomicUsize>,
    cut: watch::Sender<u64>,
    silent: watch::Sender<bool>,
}

impl TcpProxy {
    /// Starts a proxy whose upstream is a port of this machine.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let proxy = Self {
            address,
            upstream: Arc::new(AtomicU16::new(port)),
            connections: Arc::default(),
            cut: watch::Sender::new(0),
            silent: watch::Sender::new(false),
        };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                let (port, mut cut) = (accepting.upstream.load(Ordering::Relaxed), accepting.cut.subscribe());
                let mut silent = accepting.silent.subscribe();
                tokio::spawn(async move {
                    let Ok(mut upstream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
                    let silenced = async { silent.wait_for(|silent| *silent).await.is_ok() };
                    tokio::select! {
                        biased;
                        true = silenced => {
                            // Keeps both connections open without reading from them.
                            let _ = cut.changed().await;
                        }
                        _ = copy_bidirectional(&mut client, &mut upstream) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        proxy
    }

    /// Returns the number of connections accepted since the start.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Changes the upstream port. Existing connections keep theirs.
    pub fn set_upstream(&self, port: u16) {
        self.upstream.store(port, Ordering::Relaxed);
    }

    /// Silently discards all data of old and new connections, as a partitioned network does.
    pub fn silence(&self) {
        self.silent.send_replace(true);
    }

    /// Forwards the data of new connections again. Discarded data stays lost.
    pub fn resume(&self) {
        self.silent.send_replace(false);
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}
