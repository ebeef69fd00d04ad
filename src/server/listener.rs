//! The accept loop. It is ours, so that nothing stands before the stack: deadlines and the end of a connection are decided
//! here and there, and a shutdown has a deadline that no client can move (hyperium/hyper#4170).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Entrance,
    gather::Gather,
    peer::{Activity, Connected, Peer},
    tls::{self, HANDSHAKE, Tls},
};
use crate::identity::CertificateNames;

/// How long to wait after the system refused a connection, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A connection that says nothing is asked after this time whether it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long it may take to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client that was told that a connection ends may take to leave, after its last call.
const LEAVE: Duration = Duration::from_secs(2);
/// The largest header list that is read, in bytes.
const MAX_HEADER_LIST: u32 = 16 << 10;
/// The longest line and headers of a request by HTTP/1.1, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// How long they may take to arrive.
const HEAD_ARRIVAL: Duration = Duration::from_secs(10);
/// The most that is buffered for sending on a stream, in bytes.
const MAX_SEND_BUFFER: usize = 256 << 10;

/// Streams that a client may reset before it is told to calm down and cut off ("rapid reset", CVE-2023-44487): those that have not
/// been looked at yet, and those whose resets are our answer to its errors.
const MAX_RESETS: (usize, usize) = (20, 1_024);

/// The limits of a listener.
#[derive(Debug, Clone, Copy)]
pub struct ListenerSettings {
    /// Connections that may be open.
    pub max_connections: usize,
    /// Streams that one connection may have open.
    pub max_streams: u32,
    /// How long a connection may last; then its client is told to open another.
    pub max_age: Duration,
    /// How long it may last without a call.
    pub max_idle: Duration,
    /// Whether it may speak HTTP/1.1 too.
    pub http1: bool,
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    settings: ListenerSettings,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

/// When a connection has to end.
#[derive(Debug, Clone)]
struct End {
    stop: CancellationToken,
    settings: ListenerSettings,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

impl Listener {
    /// Binds to an address.
    pub async fn bind(address: SocketAddr, settings: ListenerSettings, tls: Option<&Tls>) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, settings, tls: tls.map(Tls::current) })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` is canceled; then accepts nothing more, answers what is in flight, and returns. Connections that
    /// are still open when `abandon` is canceled are cut.
    pub async fn serve(self, service: Entrance, stop: CancellationToken, abandon: CancellationToken) {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(self.settings.max_connections));
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.socket, &places) => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, address, place)) => {
                    let end = End { stop: stop.clone(), settings: self.settings, tls: self.tls.clone() };
                    let connection = connection(stream, address, service.clone(), end);
                    let abandon = abandon.clone();
                    connections.spawn(async move {
                        abandon.run_until_cancelled(connection).await;
                        drop(place);
                    });
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

/// Accepts a connection as soon as there is a place for it; until then, the system lets it wait.
async fn accept(
    socket: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = socket.accept().await?;
    Ok((stream, address, place))
}

async fn connection(stream: TcpStream, address: SocketAddr, service: Entrance, mut end: End) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection was gone at once");
        return;
    }
    let mut peer = Peer { address: address.ip().to_canonical(), secure: false, certificate: None };
    let Some(current) = &mut end.tls else {
        return talk(stream, Connected::new(service, peer), end).await;
    };
    let handshake = tls::acceptor(current).accept(stream);
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE, handshake) => shaken,
        () = end.stop.cancelled() => return,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::info!(%address, "a TLS handshake took too long");
            return;
        }
    };
    peer.secure = true;
    if let Some(shown) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        match CertificateNames::read(shown) {
            Ok(names) => peer.certificate = Some(Arc::new(names)),
            Err(error) => {
                tracing::warn!(%address, %error, "a client certificate that is genuine names nobody");
                return;
            }
        }
    }
    talk(stream, Connected::new(service, peer), end).await;
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: Connected, end: End) {
    let activity = service.activity();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if !end.settings.http1 {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_ARRIVAL).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(end.settings.max_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESETS.0)
        .max_local_error_reset_streams(MAX_RESETS.1)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(Gather::new(stream)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        why = end.comes(&activity) => {
            tracing::debug!(why, "a connection is told to end");
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                // A client that does not answer must not keep it (hyperium/hyper#4170); one with calls on it may.
                () = idle(&activity, LEAVE) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

impl End {
    /// Waits until a connection has to end, and tells why.
    async fn comes(mut self, activity: &Activity) -> &'static str {
        // Not all that were opened together come again together.
        let age = self.settings.max_age.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        let replaced = async {
            if let Some(current) = &mut self.tls
                && current.changed().await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.stop.cancelled() => "the service stops",
            () = tokio::time::sleep(age) => "it is old",
            () = idle(activity, self.settings.max_idle) => "nothing goes on on it",
            () = replaced => "the certificates have changed",
        }
    }
}

/// Waits until a connection has had no call for a while.
async fn idle(activity: &Activity, most: Duration) {
    loop {
        let before = activity.rest();
        tokio::time::sleep(most).await;
        if before.is_some() && activity.rest() == before {
            return;
        }
    }
}
