//! Opens the stores of the configured regions.

use std::{sync::Arc, time::Duration};

use super::Error;
use crate::{
    config::{self, Config, StoreSettings},
    domain::Clock,
    storage::{
        self, Backend, DirStore, Ecs, Egress, RegistryClient, RegistryStore, Store, Stores, open_bucket,
        ssrf_guard::Guard,
    },
};

/// The fraction of `worker.stall_ms` after which a store gives up by itself. It is less than 1, so that the store's
/// error, which names the cause, comes before the error of the attempt.
const STORE_STALL: f64 = 0.75;

/// Opens the stores of the configured regions, or the client of ECS.
pub fn backend(config: &Config, clock: &Clock) -> Result<Backend, Error> {
    match config.backend()? {
        config::Backend::Stores(stores) => {
            let stall = Duration::from_millis(config.worker.stall_ms).mul_f64(STORE_STALL);
            let stores = stores.into_iter().map(|(region, settings)| {
                let store = open(settings, stall)
                    .map_err(|error| Error::Store { region: region.clone(), source: Box::new(error) })?;
                Ok((region, store))
            });
            Ok(Backend::Stores(Stores::new(stores.collect::<Result<Vec<_>, Error>>()?)))
        }
        config::Backend::Ecs { regions, settings } => {
            Ok(Backend::Ecs(Ecs::new(regions, *settings, clock.clone()).map_err(Error::Provider)?))
        }
    }
}

fn open(settings: StoreSettings, stall: Duration) -> storage::Result<Arc<dyn Store>> {
    match settings {
        StoreSettings::Dir { path, keep_free } => {
            Ok(Arc::new(DirStore::new(path).keeping_free(keep_free).stalling_after(stall)))
        }
        StoreSettings::Registry {
            location,
            credentials,
            also_hosts,
            certificates,
            verify_existing,
            loopback,
            shared,
            proxy,
        } => {
            let client = RegistryClient::new(
                location,
                credentials,
                also_hosts,
                certificates.as_deref(),
                Egress::new(Guard::new(loopback).with_shared(shared), proxy),
            )?;
            Ok(Arc::new(RegistryStore::new(client).verifying_existing(verify_existing)))
        }
        StoreSettings::Object { location, access, verify_existing, loopback, shared, proxy } => {
            let egress = Egress::new(Guard::new(loopback).with_shared(shared), proxy);
            let bucket = open_bucket(location, &access, egress)?;
            Ok(Arc::new(bucket.verifying_existing(verify_existing)))
        }
    }
}
