//! The accept loop. It is ours, so that nothing stands before the stack: deadlines and the end of a connection are decided
//! here and there, and a shutdown has a deadline that no client can move (hyperium/hyper#4170).

use std::{io, net::SocketAddr, time::Duration};

use super::Entrance;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long to wait after the system refused a connection, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A connection that says nothing is asked after this time whether it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long it may take to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest header list that is read, in bytes.
const MAX_HEADER_LIST: u32 = 16 << 10;
/// The most that is buffered for sending on a stream, in bytes.
const MAX_SEND_BUFFER: usize = 256 << 10;

/// The limits of a listener.
#[derive(Debug, Clone, Copy)]
pub struct ListenerSettings {
    /// Streams that one connection may have open.
    pub max_streams: u32,
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    settings: ListenerSettings,
}

impl Listener {
    /// Binds to an address.
    pub async fn bind(address: SocketAddr, settings: ListenerSettings) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, settings })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` is canceled; then accepts nothing more, answers what is in flight, and returns. Connections that
    /// are still open when `abandon` is canceled are cut.
    pub async fn serve(self, service: Entrance, stop: CancellationToken, abandon: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = connection(stream, self.settings, service.clone(), stop.clone());
                    let abandon = abandon.clone();
                    connections.spawn(async move { abandon.run_until_cancelled(connection).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        connections.close();
        connections.wait().await;
    }
}

async fn connection(stream: TcpStream, settings: ListenerSettings, service: Entrance, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection was gone at once");
        return;
    }
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}
