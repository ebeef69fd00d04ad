//! Serves one connection: the PROXY protocol, TLS and HTTP. Closes the connection when its conditions require it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{
    ListenerSettings,
    admission::ConnectionSlot,
    call_timer::CallExecutor,
    peer::{self, Activity, ConnectionService, Peer},
    proxy::{self, Proxies},
    tls::{HANDSHAKE_TIMEOUT, ServerTls},
    write_coalescing::CoalescingStream,
};
use crate::{identity::CertificateNames, server::Frontend};

/// Idle time after which a client is sent an HTTP/2 PING.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Longest wait for the answer to a PING.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may keep a connection after GOAWAY and the end of its last call.
const LEAVE: Duration = Duration::from_secs(2);
/// Interval at which a closing connection is checked for calls in flight.
const CALLS_INTERVAL: Duration = Duration::from_millis(100);
/// Largest list of request headers, in bytes.
const MAX_HEADER_LIST: u32 = 16 << 10;
/// Largest request line and headers of an HTTP/1.1 request, in bytes.
const MAX_HTTP1_HEAD: usize = 16 << 10;
/// Longest time for the request line and the headers to arrive.
const HTTP1_HEAD_ARRIVAL: Duration = Duration::from_secs(10);
/// Flow-control windows of a stream and of a connection: the bytes that a client may send before the server reads them.
const RECEIVE_WINDOWS: (u32, u32) = (64 << 10, 256 << 10);
/// Send buffer of a stream, in bytes.
const MAX_SEND_BUFFER: usize = 32 << 10;

/// Stream resets after which a connection is closed ("rapid reset", CVE-2023-44487): resets of streams that were not
/// accepted yet, and resets that the server sent because of protocol errors.
const MAX_RESETS: (usize, usize) = (20, 1_024);

/// An accepted connection.
pub struct Connection {
    pub address: SocketAddr,
    pub service: Frontend,
    pub proxies: Arc<Proxies>,
    pub close: CloseConditions,
}

impl Connection {
    /// Serves the connection until it is closed.
    pub async fn serve(mut self, mut stream: TcpStream, slot: &ConnectionSlot) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection was closed before it was served");
            return;
        }
        let activity = Arc::clone(&slot.activity);
        let mut peer = Peer { address: self.address.ip().to_canonical(), secure: false, certificate: None, activity };
        let is_proxy = self.proxies.trusts(peer.address);
        if is_proxy && self.proxies.protocol && self.read_proxy_header(&mut stream, &mut peer, slot).await.is_none() {
            return;
        }
        let proxies = is_proxy.then(|| Arc::clone(&self.proxies));
        if self.close.tls.is_none() {
            let service = ConnectionService::new(self.service, peer, proxies);
            return serve_http(stream, service, &slot.activity, self.close).await;
        }
        let Some(stream) = self.handshake(stream, &mut peer).await else { return };
        let service = ConnectionService::new(self.service, peer, proxies);
        serve_http(stream, service, &slot.activity, self.close).await;
    }

    /// Reads the PROXY protocol's header, and counts the connection for the address in it. Returns `None` if the
    /// connection has to be closed.
    async fn read_proxy_header(&self, stream: &mut TcpStream, peer: &mut Peer, slot: &ConnectionSlot) -> Option<()> {
        match proxy::read_header(stream).await {
            Ok(Some(caller)) if !slot.count_for(peer::source(caller)) => {
                tracing::debug!(%caller, "connection rejected: its source has reached max_connections_per_source");
                None
            }
            Ok(caller) => {
                peer.address = caller.unwrap_or(peer.address);
                Some(())
            }
            Err(error) => {
                let address = self.address;
                tracing::debug!(%address, %error, "connection of a trusted proxy rejected: invalid PROXY header");
                None
            }
        }
    }

    /// Performs the TLS handshake, and adds the names of the client's certificate to `peer`. Returns `None` if the
    /// connection has to be closed.
    async fn handshake(&mut self, stream: TcpStream, peer: &mut Peer) -> Option<TlsStream<TcpStream>> {
        let address = self.address;
        let handshake = self.close.tls.as_mut()?.borrow_and_update().acceptor().accept(stream);
        let result = tokio::select! {
            result = timeout(HANDSHAKE_TIMEOUT, handshake) => result,
            () = self.close.stop.cancelled() => return None,
        };
        let stream = match result {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "TLS handshake failed");
                return None;
            }
            Err(_) => {
                tracing::debug!(%address, "TLS handshake timed out");
                return None;
            }
        };
        peer.secure = true;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        self.close.client_chain = chain.iter().cloned().map(CertificateDer::into_owned).collect();
        if let Some(certificate) = self.close.client_chain.first() {
            match CertificateNames::read(certificate) {
                Ok(names) => peer.certificate = Some(Arc::new(names)),
                Err(error) => {
                    tracing::warn!(%address, %error, "connection rejected: client certificate has no usable name");
                    return None;
                }
            }
        }
        Some(stream)
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: ConnectionService,
    activity: &Activity,
    close: CloseConditions,
) {
    let mut builder = auto::Builder::new(CallExecutor);
    if !close.settings.http1 {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HTTP1_HEAD_ARRIVAL).max_buf_size(MAX_HTTP1_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(close.settings.max_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(RECEIVE_WINDOWS.0)
        .initial_connection_window_size(RECEIVE_WINDOWS.1)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESETS.0)
        .max_local_error_reset_streams(MAX_RESETS.1)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let max_call = close.settings.max_call;
    let connection = builder.serve_connection(TokioIo::new(CoalescingStream::new(stream)), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        reason = close.wait(activity) => {
            tracing::debug!(?reason, "closing a connection");
            if reason == CloseReason::CertificateRevoked {
                return;
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection.as_mut() => result,
                // A client that ignores GOAWAY must not keep the connection (hyperium/hyper#4170), but its calls may
                // finish.
                () = drain(activity, max_call) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection failed");
    }
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloseReason {
    /// The service is shutting down.
    Shutdown,
    /// The connection has reached its maximum age.
    Age,
    /// The connection had no call for its maximum idle time.
    Idle,
    /// The server's certificates were replaced.
    CertificatesReplaced,
    /// The client's certificate is no longer accepted. The connection is cut, not drained.
    CertificateRevoked,
}

/// The conditions on which a connection is closed.
#[derive(Debug, Clone)]
pub struct CloseConditions {
    stop: CancellationToken,
    settings: ListenerSettings,
    tls: Option<watch::Receiver<Arc<ServerTls>>>,
    /// The certificates that the client has presented, its own first.
    client_chain: Vec<CertificateDer<'static>>,
}

impl CloseConditions {
    pub fn new(
        stop: CancellationToken,
        settings: ListenerSettings,
        tls: Option<watch::Receiver<Arc<ServerTls>>>,
    ) -> Self {
        Self { stop, settings, tls, client_chain: Vec::new() }
    }

    /// Waits until one of the conditions holds.
    async fn wait(mut self, activity: &Activity) -> CloseReason {
        // Jitter of 10 % (gRFC A9): connections that were opened together are not reopened together.
        let age = self.settings.max_age.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        let chain = self.client_chain;
        let replaced = async {
            if let Some(tls) = &mut self.tls
                && tls.changed().await.is_ok()
            {
                let accepted = tls.borrow().accepts_client(&chain);
                return if accepted { CloseReason::CertificatesReplaced } else { CloseReason::CertificateRevoked };
            }
            std::future::pending().await
        };
        tokio::select! {
            () = self.stop.cancelled() => CloseReason::Shutdown,
            () = sleep(age) => CloseReason::Age,
            () = idle(activity, self.settings.max_idle) => CloseReason::Idle,
            reason = replaced => reason,
        }
    }
}

/// Waits until a closing connection may be cut. First gives the client time to leave; after that, the connection begins
/// no more calls. Then waits until no call is in flight or `max_call` has passed.
async fn drain(activity: &Activity, max_call: Duration) {
    sleep(LEAVE).await;
    activity.close();
    let calls_end = async {
        while activity.idle_generation().is_none() {
            sleep(CALLS_INTERVAL).await;
        }
    };
    let _ = timeout(max_call, calls_end).await;
}

/// Waits until a connection has had no call for `max_idle`.
async fn idle(activity: &Activity, max_idle: Duration) {
    loop {
        let before = activity.idle_generation();
        sleep(max_idle).await;
        if before.is_some() && activity.idle_generation() == before {
            return;
        }
    }
}
