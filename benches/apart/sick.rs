//! The ways in which a region is sick.

use std::net::SocketAddr;

use super::{
    Result,
    harness::{
        address::free_address,
        disk::FreezableDisk,
        proxy::{Act, Proxy, Seen},
    },
};

/// What is wrong with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sick {
    /// It refuses connections.
    Refuses,
    /// It takes connections and never answers.
    Silent,
    /// It takes half a mebibyte a second.
    Slow,
    /// Its disk hangs in every write.
    Frozen,
    /// It never answers the request that would make an image visible.
    Last,
}

/// A sick region's store, for as long as it is needed.
pub struct SickStore {
    /// Its URL.
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

    /// A store that is sick like this; `registry` is what is behind those that answer at all.
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
