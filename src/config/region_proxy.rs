//! The forward proxies of the regions and the keys that set them, for the advice when a region can't be reached.

use url::Url;

use super::{Config, Error};
use crate::{
    domain::RegionId,
    storage::{ForwardProxy, Location, Provider},
};

/// The forward proxy of a region.
#[derive(Debug, Clone)]
pub struct RegionProxy {
    /// The region that is reached through the proxy.
    pub region: RegionId,
    /// The configuration key that sets the proxy.
    pub key: String,
    /// The proxy, with its credentials and exceptions.
    pub proxy: ForwardProxy,
    /// The URL of the region's service.
    pub target: Url,
}

impl Config {
    /// Returns the regions that are reached through a proxy.
    pub fn region_proxies(&self) -> Result<Vec<RegionProxy>, Error> {
        let mut proxies = Vec::new();
        for (index, region) in self.region.iter().enumerate() {
            let Some(proxy) = region.forward_proxy(index, &self.network)? else { continue };
            let Some(target) = self.target(index).filter(|target| proxy.covers(target)) else { continue };
            let key =
                if region.proxy.is_some() { format!("region[{index}].proxy") } else { "network.proxy".to_owned() };
            proxies.push(RegionProxy { region: region.id(index)?, key, proxy, target });
        }
        Ok(proxies)
    }

    /// Returns the URL of a region's service. Returns `None` for a directory, or if only the provider's library knows
    /// the URL.
    fn target(&self, index: usize) -> Option<Url> {
        let region = self.region.get(index)?;
        let parse = |text: String| text.parse().ok();
        match region.store.parse().ok()? {
            Location::Dir(_) => None,
            Location::Registry(location) => Some(location.base),
            Location::Ecs(name) => self.alibaba.clone().unwrap_or_default().endpoint(&name).ok(),
            Location::Object(location) => match (&region.endpoint, location.provider) {
                (Some(endpoint), _) => endpoint.parse().ok(),
                (None, Provider::S3) => {
                    let of = region.bucket_region.as_ref().map(|region| format!("{region}.")).unwrap_or_default();
                    parse(format!("https://s3.{of}amazonaws.com"))
                }
                (None, Provider::Gcs) => parse("https://storage.googleapis.com".to_owned()),
                (None, Provider::Azure) => region
                    .access_key_id
                    .as_ref()
                    .and_then(|account| parse(format!("https://{account}.blob.core.windows.net"))),
            },
        }
    }
}
