//! What is needed to reach the regions, of whichever kind they are.

use super::{
    Config, Error,
    region::{Open, OpenStore},
    value,
};
use crate::{domain::RegionId, region::ecs};

/// What is needed to reach all regions.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Stores of blobs.
    Stores(Vec<(RegionId, OpenStore)>),
    /// Regions of Alibaba Cloud.
    Ecs {
        /// The regions.
        places: Vec<(RegionId, ecs::Place)>,
        /// How the provider is spoken to.
        settings: Box<ecs::Settings>,
    },
}

impl Config {
    /// What is needed to open the stores, or to speak to the provider. ECS copies between its own regions only, so that either all
    /// regions are of ECS or none is.
    pub fn backend(&self) -> Result<Backend, Error> {
        let (mut stores, mut places) = (Vec::new(), Vec::new());
        for (place, region) in self.region.iter().enumerate() {
            let id = region.id(place)?;
            match region.open(place, &self.network)? {
                Open::Ecs(name) => {
                    let alibaba = self.alibaba.clone().unwrap_or_default();
                    places.push((id, ecs::Place { endpoint: alibaba.endpoint(&name)?, name }));
                }
                Open::Store(store) => stores.push((id, *store)),
            }
            if !stores.is_empty() && !places.is_empty() {
                let problem = "ECS copies between its own regions only: either all regions are ecs:// or none is";
                return Err(value(format!("region[{place}].store"), problem));
            }
        }
        match &self.alibaba {
            alibaba if !places.is_empty() => {
                let settings = alibaba.clone().unwrap_or_default().settings(self.network.forward_proxy()?)?;
                Ok(Backend::Ecs { places, settings: Box::new(settings) })
            }
            Some(_) => Err(value("alibaba", "no region is ecs://REGION")),
            None => Ok(Backend::Stores(stores)),
        }
    }
}
