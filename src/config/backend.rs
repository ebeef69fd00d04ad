//! Converts the regions of the configuration into the settings of their backends.

use super::{
    Config, Error, invalid,
    store::{RegionBackend, StoreSettings},
};
use crate::{domain::RegionId, storage::ecs};

/// The settings of all regions' backends.
#[derive(Debug, Clone)]
pub enum Backend {
    /// The settings of the store of each region.
    Stores(Vec<(RegionId, StoreSettings)>),
    /// Regions of Alibaba Cloud.
    Ecs {
        /// The regions, each with its place in ECS.
        regions: Vec<(RegionId, ecs::Place)>,
        /// The settings of the provider's client.
        settings: Box<ecs::Settings>,
    },
}

impl Config {
    /// Returns the settings of all stores, or of the ECS client. ECS copies only between its own regions, so either all
    /// regions or none must be regions of ECS.
    pub fn backend(&self) -> Result<Backend, Error> {
        let (mut stores, mut regions) = (Vec::new(), Vec::new());
        for (index, region) in self.region.iter().enumerate() {
            let id = region.id(index)?;
            match region.backend(index, &self.network)? {
                RegionBackend::Ecs(name) => {
                    let alibaba = self.alibaba.clone().unwrap_or_default();
                    regions.push((id, ecs::Place { endpoint: alibaba.endpoint(&name)?, name }));
                }
                RegionBackend::Store(store) => stores.push((id, *store)),
            }
            if !stores.is_empty() && !regions.is_empty() {
                let problem = "ECS copies between its own regions only: either all regions are ecs:// or none is";
                return Err(invalid(format!("region[{index}].store"), problem));
            }
        }
        match &self.alibaba {
            alibaba if !regions.is_empty() => {
                let settings = alibaba.clone().unwrap_or_default().settings(self.network.forward_proxy()?)?;
                Ok(Backend::Ecs { regions, settings: Box::new(settings) })
            }
            Some(_) => Err(invalid("alibaba", "no region has an ecs:// store; remove the section")),
            None => Ok(Backend::Stores(stores)),
        }
    }
}
