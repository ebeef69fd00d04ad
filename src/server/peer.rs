//! The other end of a connection, which every call on it can ask about.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
};

use http::{Request, Response};
use hyper::{body::Incoming, service::Service};
use tower::Service as _;

use super::{
    Entrance,
    held::{HeldBody, HeldFuture},
};
use crate::identity::CertificateNames;

/// See the module.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address. That of a proxy, if there is one: what a proxy says of others is not believed.
    pub address: IpAddr,
    /// Whether the connection is by TLS.
    pub secure: bool,
    /// The names in the certificate that it has shown.
    pub certificate: Option<Arc<CertificateNames>>,
}

impl Peer {
    /// Whom its failures are counted for: an IPv4 address, or a network of 64 bits, of which one host can use any address
    /// (RFC 6177).
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match self.address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from(network))
            }
            v4 @ IpAddr::V4(_) => v4,
        }
    }
}

/// What goes on on a connection.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicU64,
    open: AtomicUsize,
}

impl Activity {
    /// Calls that have ever begun, if none is open.
    pub fn rest(&self) -> Option<u64> {
        (self.open.load(Ordering::Acquire) == 0).then(|| self.begun.load(Ordering::Acquire))
    }
}

/// One call of them. It is over when this is dropped.
#[derive(Debug)]
pub struct Open(Arc<Activity>);

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
    activity: Arc<Activity>,
}

impl Connected {
    pub fn new(inner: Entrance, peer: Peer) -> Self {
        Self { inner: Mutex::new(inner), peer, activity: Arc::default() }
    }

    /// What goes on on the connection.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }
}

impl Service<Request<Incoming>> for Connected {
    type Response = Response<HeldBody<Open>>;
    type Error = std::convert::Infallible;
    type Future = HeldFuture<<Entrance as tower::Service<Request<Incoming>>>::Future, Open>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.activity.open.fetch_add(1, Ordering::AcqRel);
        self.activity.begun.fetch_add(1, Ordering::AcqRel);
        let open = Open(Arc::clone(&self.activity));
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // It always is, and is asked for what a service may expect.
        let _ = inner.poll_ready(&mut Context::from_waker(Waker::noop()));
        HeldFuture::new(inner.call(request), open)
    }
}

#[cfg(test)]
mod tests {
    use super::Peer;

    #[test]
    fn failures_are_counted_for_who_can_use_the_address() {
        for (address, source) in
            [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::")]
        {
            let peer = Peer { address: address.parse().expect("an address"), secure: false, certificate: None };
            assert_eq!(peer.source().to_string(), source);
        }
    }
}
