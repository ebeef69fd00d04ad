//! The other end of a connection, which every call on it can ask about.

use std::{
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
    Entrance,
    held::{HeldBody, HeldFuture},
    proxy::Proxies,
};
use crate::identity::CertificateNames;

/// See the module.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address: that of the connection, or, where that is of a proxy that is trusted, what the proxy says.
    pub address: IpAddr,
    /// Whether the connection is by TLS.
    pub secure: bool,
    /// The names in the certificate that it has shown.
    pub certificate: Option<Arc<CertificateNames>>,
    /// What goes on on its connection.
    pub activity: Arc<Activity>,
}

impl Peer {
    /// Whom what it does is counted for.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        source(self.address)
    }
}

/// Whom what an address does is counted for: an IPv4 address, or a network of 64 bits, of which one host can use any address
/// (RFC 6177).
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

/// What goes on on a connection.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicU64,
    open: AtomicUsize,
    /// Calls in progress whose callers have proved who they are.
    authenticated: AtomicUsize,
    /// Whether there has been one.
    proven: AtomicBool,
    /// Whether no more calls are begun.
    closed: AtomicBool,
}

/// How much a connection is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Nothing on it has proved who calls.
    Unproven,
    /// An authenticated call was made, and none is in progress.
    Idle,
    /// An authenticated call is in progress.
    Busy,
}

impl Activity {
    /// Calls that have ever begun, if none is open.
    pub fn rest(&self) -> Option<u64> {
        (self.open.load(Ordering::Acquire) == 0).then(|| self.begun.load(Ordering::Acquire))
    }

    /// How much the connection is needed.
    pub fn used(&self) -> Use {
        if self.authenticated.load(Ordering::Acquire) > 0 {
            Use::Busy
        } else if self.proven.load(Ordering::Acquire) {
            Use::Idle
        } else {
            Use::Unproven
        }
    }

    /// A call begins whose caller has proved who it is.
    pub fn authenticated(self: &Arc<Self>) -> Authenticated {
        self.authenticated.fetch_add(1, Ordering::AcqRel);
        if !self.proven.load(Ordering::Acquire) {
            self.proven.store(true, Ordering::Release);
        }
        Authenticated(Arc::clone(self))
    }

    /// Has no more calls begin.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// A call of an authenticated caller. It is over when this is dropped.
#[derive(Debug)]
pub struct Authenticated(Arc<Activity>);

impl Drop for Authenticated {
    fn drop(&mut self) {
        self.0.authenticated.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Any call. It is over when this is dropped.
#[derive(Debug)]
pub struct Open(Arc<Activity>);

impl Open {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::AcqRel);
        activity.begun.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(activity))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The service as one connection has it: its calls know their peer. It is not cloned for every call: that would change a counter of
/// each thing that all calls share, which costs every processor the way to the one that changed it last.
#[derive(Debug)]
pub struct Connected {
    /// Nobody waits for it: a connection's calls are begun by the task that reads them.
    inner: Mutex<Entrance>,
    peer: Peer,
    /// Those that may say for whom they call, if the peer is one of them.
    proxies: Option<Arc<Proxies>>,
}

impl Connected {
    pub fn new(inner: Entrance, peer: Peer, proxies: Option<Arc<Proxies>>) -> Self {
        Self { inner: Mutex::new(inner), peer, proxies }
    }
}

/// The answer to a call on a connection that takes no more: the client repeats it on another one. gRPC reads the status as
/// `UNAVAILABLE` ("HTTP to gRPC Status Code Mapping").
fn gone() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// An answer of the stack, or the one that there is none.
type Answer = Either<
    <Entrance as tower::Service<Request<Incoming>>>::Future,
    std::future::Ready<Result<Response<Body>, std::convert::Infallible>>,
>;

impl Service<Request<Incoming>> for Connected {
    type Response = Response<HeldBody<Open>>;
    type Error = std::convert::Infallible;
    type Future = HeldFuture<Answer, Open>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let mut peer = self.peer.clone();
        if peer.activity.closed.load(Ordering::Acquire) {
            return HeldFuture::unheld(Either::Right(std::future::ready(Ok(gone()))));
        }
        let open = Open::begin(&peer.activity);
        if let Some(proxies) = &self.proxies
            && let Some(address) = proxies.forwarded(request.headers(), peer.address)
        {
            peer.address = address;
        }
        request.extensions_mut().insert(peer);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // It always is, and is asked for what a service may expect.
        let _ = inner.poll_ready(&mut Context::from_waker(Waker::noop()));
        HeldFuture::new(Either::Left(inner.call(request)), open)
    }
}

#[cfg(test)]
mod tests {
    use super::source;

    #[test]
    fn failures_are_counted_for_who_can_use_the_address() {
        for (address, counted) in
            [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::")]
        {
            assert_eq!(source(address.parse().expect("an address")).to_string(), counted);
        }
    }
}
