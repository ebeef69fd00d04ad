//! A TCP proxy in front of a database server, whose upstream can be changed and whose connections can be cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A TCP proxy. Runs until the runtime ends.
#[derive(Debug, Clone)]
pub struct Switch {
    pub address: SocketAddr,
    to: Arc<AtomicU16>,
    cut: watch::Sender<u64>,
    silent: watch::Sender<bool>,
}

impl Switch {
    /// Starts a proxy to a port of this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let switch = Self {
            address,
            to: Arc::new(AtomicU16::new(port)),
            cut: watch::Sender::new(0),
            silent: watch::Sender::new(false),
        };
        let own = switch.clone();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let (port, mut cut) = (own.to.load(Ordering::Relaxed), own.cut.subscribe());
                let mut silent = own.silent.subscribe();
                tokio::spawn(async move {
                    let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let _ = (from.set_nodelay(true), to.set_nodelay(true));
                    let silenced = async { silent.wait_for(|silent| *silent).await.is_ok() };
                    tokio::select! {
                        biased;
                        true = silenced => {
                            // Neither end is notified.
                            let _ = cut.changed().await;
                        }
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        switch
    }

    /// Changes the upstream port of new connections.
    pub fn turn(&self, port: u16) {
        self.to.store(port, Ordering::Relaxed);
    }

    /// Silently discards all data of old and new connections, as a partitioned network does.
    pub fn silence(&self) {
        self.silent.send_replace(true);
    }

    /// Forwards the data of new connections again. Discarded data stays lost.
    pub fn speak(&self) {
        self.silent.send_replace(false);
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}
