//! The listener: accepts connections up to a limit and serves each in a task of its own.
//!
//! It replaces the listeners of hyper and tonic, so that connections have a maximum age, a maximum idle time and a
//! priority, and a shutdown has a deadline that no client can extend (hyperium/hyper#4170).

mod admission;
pub mod call_timer;
mod connection;
pub mod guarded_response;
pub mod peer;
pub mod proxy;
pub mod tls;
mod write_coalescing;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use admission::{Admission, ConnectionSlot};
use connection::{CloseConditions, Connection};
use proxy::Proxies;
use tls::{ServerTls, Tls};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Frontend;

/// Pause after `accept` failed, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The limits of a listener.
#[derive(Debug, Clone, Copy)]
pub struct ListenerSettings {
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Maximum number of open connections of one source address.
    pub max_per_source: usize,
    /// Maximum number of concurrent streams per connection.
    pub max_streams: u32,
    /// Age at which a connection is closed gracefully; its client opens a new one.
    pub max_age: Duration,
    /// Time without a call after which a connection is closed gracefully.
    pub max_idle: Duration,
    /// Longest time that calls may last on a connection that is being closed.
    pub max_call: Duration,
    /// Whether HTTP/1.1 is served besides HTTP/2.
    pub http1: bool,
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    settings: ListenerSettings,
    proxies: Arc<Proxies>,
    tls: Option<watch::Receiver<Arc<ServerTls>>>,
}

impl Listener {
    /// Binds to an address.
    ///
    /// # Errors
    ///
    /// Fails if the operating system refuses the address.
    pub async fn bind(
        address: SocketAddr,
        settings: ListenerSettings,
        proxies: Arc<Proxies>,
        tls: Option<&Tls>,
    ) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, settings, proxies, tls: tls.map(Tls::subscribe) })
    }

    /// Returns the bound address, with the port that the system chose for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` is canceled. Then stops accepting, drains the calls in flight, and returns. Cuts connections
    /// that are still open when `abandon` is canceled.
    pub async fn serve(self, service: Frontend, stop: CancellationToken, abandon: CancellationToken) {
        let tasks = TaskTracker::new();
        let admission = Admission::new(self.settings.max_connections, self.settings.max_per_source);
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&admission) => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok(Some((stream, address, slot))) => {
                    let close = CloseConditions::new(stop.clone(), self.settings, self.tls.clone());
                    let (proxies, abandon) = (Arc::clone(&self.proxies), abandon.clone());
                    let connection = Connection { address, service: service.clone(), proxies, close };
                    tasks.spawn(async move {
                        tokio::select! {
                            () = connection.serve(stream, &slot) => {}
                            () = slot.evicted.cancelled() => {
                                tracing::debug!(%address, "connection evicted: the listener is full");
                            }
                            () = abandon.cancelled() => {}
                        }
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection; retrying");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        tasks.close();
        tasks.wait().await;
    }

    /// Accepts a connection and waits for a slot; meanwhile further connections wait in the socket's backlog. Returns
    /// `None` if the source address has reached its limit.
    async fn accept(&self, admission: &Arc<Admission>) -> io::Result<Option<(TcpStream, SocketAddr, ConnectionSlot)>> {
        let (stream, address) = self.socket.accept().await?;
        // Connections of a trusted proxy are counted for the callers that it names.
        let source = if self.proxies.trusts(address.ip()) { None } else { Some(peer::source(address.ip())) };
        let slot = admission.admit(source).await;
        if slot.is_none() {
            tracing::debug!(%address, "connection rejected: its source address has reached max_connections_per_source");
        }
        Ok(slot.map(|slot| (stream, address, slot)))
    }
}
