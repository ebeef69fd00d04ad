//! The accept loop. It is ours, so that nothing stands before the stack: deadlines and the end of a connection are decided
//! here and there, and a shutdown has a deadline that no client can move (hyperium/hyper#4170).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Entrance,
    call_timer::CallExecutor,
    connections::{Connections, Place},
    gather::Gather,
    peer::{self, Activity, Connected, Peer},
    proxy::{self, Proxies},
    tls::{Accepting, HANDSHAKE, Tls},
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
/// How often it is looked whether the calls of such a connection are over.
const CALLS_LOOK: Duration = Duration::from_millis(100);
/// The largest header list that is read, in bytes.
const MAX_HEADER_LIST: u32 = 16 << 10;
/// The longest line and headers of a request by HTTP/1.1, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long they may take to arrive.
const HEAD_ARRIVAL: Duration = Duration::from_secs(10);
/// The most that is received on a stream and on a connection before it is asked for, in bytes.
const RECEIVE_WINDOWS: (u32, u32) = (64 << 10, 256 << 10);
/// The most that is buffered for sending on a stream, in bytes.
const MAX_SEND_BUFFER: usize = 32 << 10;

/// Streams that a client may reset before it is told to calm down and cut off ("rapid reset", CVE-2023-44487): those that have not
/// been looked at yet, and those whose resets are our answer to its errors.
const MAX_RESETS: (usize, usize) = (20, 1_024);

/// The limits of a listener.
#[derive(Debug, Clone, Copy)]
pub struct ListenerSettings {
    /// Connections that may be open.
    pub max_connections: usize,
    /// Those of one source.
    pub max_per_source: usize,
    /// Streams that one connection may have open.
    pub max_streams: u32,
    /// How long a connection may last; then its client is told to open another.
    pub max_age: Duration,
    /// How long it may last without a call.
    pub max_idle: Duration,
    /// How long calls may last on one that has been told to end.
    pub max_call: Duration,
    /// Whether it may speak HTTP/1.1 too.
    pub http1: bool,
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    settings: ListenerSettings,
    proxies: Arc<Proxies>,
    tls: Option<watch::Receiver<Arc<Accepting>>>,
}

/// When a connection has to end.
#[derive(Debug, Clone)]
struct End {
    stop: CancellationToken,
    settings: ListenerSettings,
    tls: Option<watch::Receiver<Arc<Accepting>>>,
    /// The certificates that the client has shown.
    shown: Vec<CertificateDer<'static>>,
}

impl Listener {
    /// Binds to an address.
    pub async fn bind(
        address: SocketAddr,
        settings: ListenerSettings,
        proxies: Arc<Proxies>,
        tls: Option<&Tls>,
    ) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, settings, proxies, tls: tls.map(Tls::current) })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` is canceled; then accepts nothing more, answers what is in flight, and returns. Connections that
    /// are still open when `abandon` is canceled are cut.
    pub async fn serve(self, service: Entrance, stop: CancellationToken, abandon: CancellationToken) {
        let tasks = TaskTracker::new();
        let connections = Connections::new(self.settings.max_connections, self.settings.max_per_source);
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&connections) => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok(Some((stream, address, place))) => {
                    let end =
                        End { stop: stop.clone(), settings: self.settings, tls: self.tls.clone(), shown: Vec::new() };
                    let (service, proxies, abandon) = (service.clone(), Arc::clone(&self.proxies), abandon.clone());
                    tasks.spawn(async move {
                        tokio::select! {
                            () = connection(stream, address, service, proxies, &place, end) => {}
                            () = place.evicted.cancelled() => {
                                tracing::debug!(%address, "a connection gives way to another one");
                            }
                            () = abandon.cancelled() => {}
                        }
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        tasks.close();
        tasks.wait().await;
    }

    /// Accepts a connection as soon as there is a place for it; until then, the system lets others wait. Nothing if its source has
    /// all places that one may have.
    async fn accept(&self, connections: &Arc<Connections>) -> io::Result<Option<(TcpStream, SocketAddr, Place)>> {
        let (stream, address) = self.socket.accept().await?;
        // A proxy's connections are those of its callers.
        let source = if self.proxies.trusts(address.ip()) { None } else { Some(peer::source(address.ip())) };
        let place = connections.admit(source).await;
        if place.is_none() {
            tracing::debug!(%address, "a connection is refused: its source has as many as one may have");
        }
        Ok(place.map(|place| (stream, address, place)))
    }
}

async fn connection(
    mut stream: TcpStream,
    address: SocketAddr,
    service: Entrance,
    proxies: Arc<Proxies>,
    place: &Place,
    mut end: End,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection was gone at once");
        return;
    }
    let activity = Arc::clone(&place.activity);
    let mut peer = Peer { address: address.ip().to_canonical(), secure: false, certificate: None, activity };
    let trusted = proxies.trusts(peer.address);
    if trusted && proxies.protocol {
        match proxy::read_header(&mut stream).await {
            Ok(Some(caller)) if !place.count_for(peer::source(caller)) => {
                tracing::debug!(%caller, "a connection is refused: its source has as many as one may have");
                return;
            }
            Ok(caller) => peer.address = caller.unwrap_or(peer.address),
            Err(error) => {
                tracing::debug!(%address, %error, "a trusted proxy does not say for whom it connects");
                return;
            }
        }
    }
    let proxies = trusted.then_some(proxies);
    let Some(current) = &mut end.tls else {
        return talk(stream, Connected::new(service, peer, proxies), &place.activity, end).await;
    };
    let handshake = current.borrow_and_update().acceptor().accept(stream);
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE, handshake) => shaken,
        () = end.stop.cancelled() => return,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "a TLS handshake took too long");
            return;
        }
    };
    peer.secure = true;
    end.shown = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .cloned()
        .map(|certificate| certificate.into_owned())
        .collect();
    if let Some(first) = end.shown.first() {
        match CertificateNames::read(first) {
            Ok(names) => peer.certificate = Some(Arc::new(names)),
            Err(error) => {
                tracing::warn!(%address, %error, "a client certificate that is genuine names nobody");
                return;
            }
        }
    }
    talk(stream, Connected::new(service, peer, proxies), &place.activity, end).await;
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Connected,
    activity: &Activity,
    end: End,
) {
    let mut builder = auto::Builder::new(CallExecutor);
    if !end.settings.http1 {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_ARRIVAL).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(end.settings.max_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(RECEIVE_WINDOWS.0)
        .initial_connection_window_size(RECEIVE_WINDOWS.1)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESETS.0)
        .max_local_error_reset_streams(MAX_RESETS.1)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let max_call = end.settings.max_call;
    let connection = builder.serve_connection(TokioIo::new(Gather::new(stream)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        why = end.comes(activity) => {
            tracing::debug!(?why, "a connection is told to end");
            if why == Why::NotTaken {
                return;
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                // A client that does not answer must not keep it (hyperium/hyper#4170); one with calls on it may, as long as they last.
                () = leave(activity, max_call) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The service stops.
    Stopping,
    /// It has lasted for as long as one may.
    Old,
    /// Nothing goes on on it.
    Idle,
    /// The certificates that it would be accepted with now are others.
    Replaced,
    /// It would not be accepted any more.
    NotTaken,
}

impl End {
    /// Waits until a connection has to end, and tells why.
    async fn comes(mut self, activity: &Activity) -> Why {
        // Not all that were opened together come again together.
        let age = self.settings.max_age.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        let shown = self.shown;
        let replaced = async {
            if let Some(current) = &mut self.tls
                && current.changed().await.is_ok()
            {
                return if current.borrow().takes(&shown) { Why::Replaced } else { Why::NotTaken };
            }
            std::future::pending().await
        };
        tokio::select! {
            () = self.stop.cancelled() => Why::Stopping,
            () = sleep(age) => Why::Old,
            () = idle(activity, self.settings.max_idle) => Why::Idle,
            why = replaced => why,
        }
    }
}

/// Waits until a connection that was told to end may be cut: when its client has had time to leave and no call is in progress, and in any
/// case when the longest call must be over. A client that has not left by then begins no more calls.
async fn leave(activity: &Activity, max_call: Duration) {
    sleep(LEAVE).await;
    activity.close();
    let calls_end = async {
        while activity.rest().is_none() {
            sleep(CALLS_LOOK).await;
        }
    };
    let _ = timeout(max_call, calls_end).await;
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
