//! The other end of a connection, and the connection's service, which adds the [`Peer`] to every call.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
};

use futures_util::future::Either;
use http::{HeaderValue, Request, Response, StatusCode, header::RETRY_AFTER};
use hyper::{body::Incoming, service::Service};
use tonic::body::Body;
use tower::Service as _;

use super::{
    guarded_response::{GuardedBody, GuardedFuture},
    proxy::Proxies,
};
use crate::{identity::CertificateNames, server::Frontend};

/// The caller's end of a connection. A request extension of every call.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The caller's address: the address of the connection, or the address that a trusted proxy reports.
    pub address: IpAddr,
    /// Whether the connection uses TLS.
    pub secure: bool,
    /// The names in the client certificate.
    pub certificate: Option<Arc<CertificateNames>>,
    /// The calls of the connection.
    pub activity: Arc<Activity>,
}

impl Peer {
    /// Returns the source that limits are counted for; see [`source`].
    #[must_use]
    pub fn source(&self) -> IpAddr {
        source(self.address)
    }
}

/// Returns the source for which the limits of an address are counted: an IPv4 address, or the 64-bit network of an IPv6
/// address, because one host can use any address of such a network (RFC 6177).
#[must_use]
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Counts the calls of a connection.
#[derive(Debug, Default)]
pub struct Activity {
    /// Number of calls that have begun since the connection was opened.
    begun: AtomicU64,
    in_flight: AtomicUsize,
    /// Authenticated calls in flight.
    authenticated: AtomicUsize,
    /// Whether there has been an authenticated call.
    was_authenticated: AtomicBool,
    /// Whether new calls are rejected.
    is_closed: AtomicBool,
}

/// How a connection is used. This decides which connection is evicted when the listener is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionUse {
    /// The connection has had no authenticated call.
    Unauthenticated,
    /// The connection has had authenticated calls; none is in flight.
    Idle,
    /// An authenticated call is in flight.
    Busy,
}

impl Activity {
    /// Returns `None` while calls are in flight, and otherwise the number of calls that have begun since the connection
    /// was opened. If the number is the same later, the connection was idle in between.
    pub fn idle_generation(&self) -> Option<u64> {
        (self.in_flight.load(Ordering::Acquire) == 0).then(|| self.begun.load(Ordering::Acquire))
    }

    /// Returns how the connection is used.
    pub fn usage(&self) -> ConnectionUse {
        if self.authenticated.load(Ordering::Acquire) > 0 {
            ConnectionUse::Busy
        } else if self.was_authenticated.load(Ordering::Acquire) {
            ConnectionUse::Idle
        } else {
            ConnectionUse::Unauthenticated
        }
    }

    /// Counts an authenticated call until the result is dropped.
    pub fn authenticated(self: &Arc<Self>) -> AuthenticatedCall {
        self.authenticated.fetch_add(1, Ordering::AcqRel);
        if !self.was_authenticated.load(Ordering::Acquire) {
            self.was_authenticated.store(true, Ordering::Release);
        }
        AuthenticatedCall(Arc::clone(self))
    }

    /// Rejects new calls from now on.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }
}

/// An authenticated call in flight, which is counted until it is dropped.
#[derive(Debug)]
pub struct AuthenticatedCall(Arc<Activity>);

impl Drop for AuthenticatedCall {
    fn drop(&mut self) {
        self.0.authenticated.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A call in flight, which is counted until it is dropped.
#[derive(Debug)]
pub struct CallInFlight(Arc<Activity>);

impl CallInFlight {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        activity.begun.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(activity))
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The service of one connection; adds the [`Peer`] to its calls. Not cloned per call: bumping shared `Arc` counts
/// bounces their cache lines between cores.
#[derive(Debug)]
pub struct ConnectionService {
    /// Never contended: the task that reads the connection begins all of its calls.
    inner: Mutex<Frontend>,
    peer: Peer,
    /// The trusted proxies, if the peer is one of them. It then forwards the calls of clients at other addresses.
    proxies: Option<Arc<Proxies>>,
}

impl ConnectionService {
    pub fn new(inner: Frontend, peer: Peer, proxies: Option<Arc<Proxies>>) -> Self {
        Self { inner: Mutex::new(inner), peer, proxies }
    }
}

/// The response to a call on a closed connection; the client repeats the call on another one. gRPC maps the HTTP status
/// to `UNAVAILABLE` ("HTTP to gRPC Status Code Mapping").
fn connection_closed() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The future of the stack's response, or of the response to a call on a closed connection.
type CallFuture =
    Either<<Frontend as tower::Service<Request<Incoming>>>::Future, Ready<Result<Response<Body>, Infallible>>>;

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response<GuardedBody<CallInFlight>>;
    type Error = Infallible;
    type Future = GuardedFuture<CallFuture, CallInFlight>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let mut peer = self.peer.clone();
        if peer.activity.is_closed.load(Ordering::Acquire) {
            return GuardedFuture::unguarded(Either::Right(ready(Ok(connection_closed()))));
        }
        let in_flight = CallInFlight::begin(&peer.activity);
        if let Some(proxies) = &self.proxies
            && let Some(address) = proxies.forwarded(request.headers(), peer.address)
        {
            peer.address = address;
        }
        request.extensions_mut().insert(peer);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // The stack is always ready; polling it is part of the contract of `tower::Service`.
        let _ = inner.poll_ready(&mut Context::from_waker(Waker::noop()));
        GuardedFuture::new(Either::Left(inner.call(request)), in_flight)
    }
}

#[cfg(test)]
mod tests {
    use super::source;

    #[test]
    fn addresses_that_one_host_can_use_are_one_source() {
        for (address, counted) in
            [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::")]
        {
            assert_eq!(source(address.parse().expect("an address")).to_string(), counted);
        }
    }
}
