//! Which regions are reached by way of a proxy, and which key says so: for the advice where one can't be reached.

use url::Url;

use super::{Config, Error};
use crate::{
    domain::RegionId,
    region::{ForwardProxy, Location, Provider},
};

/// How a region is reached that has a proxy.
#[derive(Debug, Clone)]
pub struct RegionProxy {
    /// The region.
    pub region: RegionId,
    /// The key that names the proxy.
    pub key: String,
    /// The proxy.
    pub proxy: ForwardProxy,
    /// Where the region's service is.
    pub target: Url,
}

impl Config {
    /// The regions that are reached by way of a proxy.
    pub fn region_proxies(&self) -> Result<Vec<RegionProxy>, Error> {
        let mut proxies = Vec::new();
        for (place, region) in self.region.iter().enumerate() {
            let Some(proxy) = region.forward_proxy(place, &self.network)? else { continue };
            let Some(target) = self.target(place).filter(|target| proxy.covers(target)) else { continue };
            let key =
                if region.proxy.is_some() { format!("region[{place}].proxy") } else { "network.proxy".to_owned() };
            proxies.push(RegionProxy { region: region.id(place)?, key, proxy, target });
        }
        Ok(proxies)
    }

    /// Where a region's service is; nothing for a directory, or where only the provider's library knows.
    fn target(&self, place: usize) -> Option<Url> {
        let region = self.region.get(place)?;
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
