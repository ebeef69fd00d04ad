//! The failures that a region can have.

use std::net::SocketAddr;

use super::{
    Result,
    harness::{
        address::free_address,
        disk::FreezableDisk,
        proxy::{Action, Proxy, ReceivedRequest},
    },
};

/// A failure of a region's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Refuses connections.
    Refuses,
    /// Accepts connections and never responds.
    Silent,
    /// Accepts half a mebibyte per second.
    Slow,
    /// Blocks every write, as a hanging disk does.
    Frozen,
    /// Never responds to the request that would publish an image.
    Last,
}

/// The store of a failing region. Releases its resources when dropped.
pub struct FailingStore {
    pub url: String,
    _proxy: Option<Proxy>,
    _disk: Option<FreezableDisk>,
}

impl Failure {
    pub const ALL: [Self; 5] = [Self::Refuses, Self::Silent, Self::Slow, Self::Frozen, Self::Last];

    pub fn name(self) -> &'static str {
        match self {
            Self::Refuses => "refuses",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Frozen => "frozen",
            Self::Last => "last",
        }
    }

    /// Starts a store with this failure. Stores that respond forward requests to `registry`.
    pub async fn store(self, registry: SocketAddr, namespace: &str) -> Result<FailingStore> {
        let rule: fn(&ReceivedRequest) -> Action = match self {
            Self::Refuses => {
                let url = format!("registry+http://{}/{namespace}", free_address());
                return Ok(FailingStore { url, _proxy: None, _disk: None });
            }
            Self::Frozen => {
                let disk = FreezableDisk::new().ok_or("a disk that hangs takes root")?;
                disk.freeze();
                return Ok(FailingStore {
                    url: format!("dir://{}", disk.path().display()),
                    _proxy: None,
                    _disk: Some(disk),
                });
            }
            Self::Silent => |_| Action::Hang,
            Self::Slow => |_| Action::Pass,
            Self::Last => |request| {
                let last = request.method == http::Method::PUT && request.path.contains("/manifests/");
                if last { Action::Hang } else { Action::Pass }
            },
        };
        let proxy = Proxy::start(registry, rule).await;
        if self == Self::Slow {
            proxy.hold_uplink(512 << 10);
        }
        Ok(FailingStore { url: proxy.store(namespace), _proxy: Some(proxy), _disk: None })
    }
}
