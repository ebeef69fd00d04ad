//! The failures that a region can have.

use std::net::SocketAddr;

use super::{
    Result,
    harness::{
        address::free_address,
        disk::FreezableDisk,
        proxy::{Act, Proxy, Seen},
    },
};

/// A failure of a region's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sick {
    /// Refuses connections.
    Refuses,
    /// Accepts connections and never responds.
    Silent,
    /// Accepts half a mebibyte per second.
    Slow,
    /// A disk that blocks every write.
    Frozen,
    /// Never responds to the request that would publish an image.
    Last,
}

/// The store of a failing region. Releases its resources when dropped.
pub struct SickStore {
    pub url: String,
    _proxy: Option<Proxy>,
    _disk: Option<FreezableDisk>,
}

impl Sick {
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

    /// Starts a store with this failure; `registry` is the upstream of those that respond at all.
    pub async fn store(self, registry: SocketAddr, namespace: &str) -> Result<SickStore> {
        let rule: fn(&Seen) -> Act = match self {
            Self::Refuses => {
                let url = format!("registry+http://{}/{namespace}", free_address());
                return Ok(SickStore { url, _proxy: None, _disk: None });
            }
            Self::Frozen => {
                let disk = FreezableDisk::new().ok_or("a disk that hangs takes root")?;
                disk.freeze();
                return Ok(SickStore {
                    url: format!("dir://{}", disk.path().display()),
                    _proxy: None,
                    _disk: Some(disk),
                });
            }
            Self::Silent => |_| Act::Hang,
            Self::Slow => |_| Act::Pass,
            Self::Last => |seen| {
                let last = seen.method == http::Method::PUT && seen.path.contains("/manifests/");
                if last { Act::Hang } else { Act::Pass }
            },
        };
        let proxy = Proxy::start(registry, rule).await;
        if self == Self::Slow {
            proxy.hold_uplink(512 << 10);
        }
        Ok(SickStore { url: proxy.store(namespace), _proxy: Some(proxy), _disk: None })
    }
}
