//! The configuration: one typed tree, read from a file and the environment.
//!
//! Every key can be set as `APPFERRY_SECTION__KEY`, which overrides the file. Unknown keys and invalid values are
//! errors that name the key and the expected value.

mod access;
mod alibaba;
mod audit;
mod backend;
mod database;
mod error;
mod housekeeping;
mod http;
mod jwt;
mod limits;
mod log;
mod network;
mod openapi;
mod region;
mod region_credentials;
mod region_proxy;
mod secret;
mod server;
mod store;
#[cfg(test)]
mod tests;
mod tls;
mod worker;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use figment::{
    Figment,
    providers::{Env, Format as _, Toml},
};
use serde::Deserialize;

pub use access::{AccessKeyEntry, ClaimsEntry, GroupEntry, PolicyEntry, PrincipalEntry, TokenEntry};
pub use alibaba::Alibaba;
pub use audit::Audit;
pub use backend::Backend;
pub use database::Database;
pub use error::Error;
pub use housekeeping::Housekeeping;
pub use http::Http;
pub use jwt::JwtEntry;
pub use limits::Limits;
pub use log::Log;
pub use network::Network;
pub use openapi::OpenApi;
pub use region::{Link, Region};
pub use region_proxy::RegionProxy;
pub use server::Server;
pub use store::StoreSettings;
pub use tls::Tls;
pub use worker::Worker;

use self::{
    error::{invalid, positive},
    secret::{secret, secret_source},
};
use crate::{
    acs3::Hosts,
    domain::{RegionId, Regions, relay::Topology},
    identity::{Authenticator, Identity, JwksFetcher, ListedCredentials},
    ram,
};

/// The prefix of the environment variables that override keys.
const PREFIX: &str = "APPFERRY_";
/// The separator of section and key in the names of these variables.
const SEPARATOR: &str = "__";

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gRPC listener.
    #[serde(default)]
    pub server: Server,
    /// The listener of the HTTP form of the original API.
    pub openapi: Option<OpenApi>,
    /// The admin listener for probes, Prometheus and the status page.
    pub http: Option<Http>,
    /// The TLS certificate, and the authorities of client certificates.
    pub tls: Option<Tls>,
    /// The connection to the database.
    pub database: Database,
    /// The home region.
    pub home: Home,
    /// The regions and their stores.
    pub region: Vec<Region>,
    /// The forward proxy and its exceptions.
    #[serde(default)]
    pub network: Network,
    /// The client of Alibaba Cloud.
    pub alibaba: Option<Alibaba>,
    /// The costs of copying between regions.
    #[serde(default)]
    pub link: Vec<Link>,
    /// The callers with their credentials and policies.
    #[serde(default)]
    pub principal: Vec<PrincipalEntry>,
    /// Users that share policies.
    #[serde(default)]
    pub group: Vec<GroupEntry>,
    /// The policy documents.
    #[serde(default)]
    pub policy: Vec<PolicyEntry>,
    /// The trusted issuers of JSON Web Tokens.
    #[serde(default)]
    pub jwt: Vec<JwtEntry>,
    /// The limits of each caller.
    #[serde(default)]
    pub limits: Limits,
    /// The audit log of authorization decisions.
    #[serde(default)]
    pub audit: Audit,
    /// The format and the filter of the log.
    #[serde(default)]
    pub log: Log,
    /// How workers copy images.
    #[serde(default)]
    pub worker: Worker,
    /// The maintenance that the leader does.
    #[serde(default)]
    pub housekeeping: Housekeeping,
    /// The file of the configuration. `None` if the configuration was parsed from text.
    #[serde(skip)]
    file: Option<PathBuf>,
}

/// `[home]`: the region in which images are registered.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Home {
    /// The id of the home region, one of `[[region]]`.
    pub region: String,
}

impl Config {
    /// Reads a file. The environment overrides its keys.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Ok(Self { file: Some(path.to_owned()), ..Self::parse(&text)? })
    }

    /// Reads the file of this configuration again. Returns a copy if the configuration has no file.
    pub fn reload(&self) -> Result<Self, Error> {
        self.file.as_deref().map_or_else(|| Ok(self.clone()), Self::load)
    }

    /// Reads the principals, credentials and policies that the file lists now, even if other parts of it are invalid.
    /// Returns `None` if the file is malformed or has no principals, like a file that is being written.
    #[must_use]
    pub fn reload_listed(&self) -> Option<ListedCredentials> {
        let text = std::fs::read_to_string(self.file.as_deref()?).ok()?;
        let figment = figment(&text);
        let principals: Vec<PrincipalEntry> = figment.extract_inner("principal").ok()?;
        let (groups, issuers) = (section(&figment, "group")?, section(&figment, "jwt")?);
        let access = access::Access {
            principals: &principals,
            groups: &groups,
            policies: &[],
            issuers: &issuers,
            limits: &Limits::default(),
        };
        Some(access.listed())
    }

    /// Parses the text of a file. The environment overrides its keys.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = figment(text).extract().map_err(|error| Error::Form(Box::new(error)))?;
        config.check()?;
        Ok(config)
    }

    /// Rejects invalid values.
    pub fn check(&self) -> Result<(), Error> {
        self.server.check(self.tls.is_some())?;
        let plaintext = self.server.allow_plaintext || self.tls.is_some();
        self.openapi.as_ref().map_or(Ok(()), |openapi| openapi.check(plaintext))?;
        self.http.as_ref().map_or(Ok(()), Http::check)?;
        self.tls.as_ref().map_or(Ok(()), Tls::check)?;
        self.limits.check()?;
        self.audit.check()?;
        self.log.check()?;
        self.database.check()?;
        self.worker.check()?;
        self.network.check()?;
        self.housekeeping.check()?;
        let regions = self.regions()?;
        self.backend()?;
        self.topology()?;
        self.worker.served(&regions)?;
        self.directory(&mut JwksFetcher::default()).map(drop)
    }

    /// Returns the configured regions.
    pub fn regions(&self) -> Result<Regions, Error> {
        let mut ids = Vec::with_capacity(self.region.len());
        for (index, region) in self.region.iter().enumerate() {
            let id = region.id(index)?;
            if ids.contains(&id) {
                return Err(invalid(
                    format!("region[{index}].id"),
                    format!("{id} is configured twice; ids must be unique"),
                ));
            }
            if id.as_str() == "all" {
                return Err(invalid(
                    format!("region[{index}].id"),
                    "\"all\" is reserved for all regions; choose another id",
                ));
            }
            ids.push(id);
        }
        let home = self.home.region.parse().map_err(|error| invalid("home.region", error))?;
        if !ids.contains(&home) {
            return Err(invalid("home.region", format!("{home} is not one of [[region]]")));
        }
        Ok(Regions::new(home, ids))
    }

    /// Returns the location of each region's store, without secrets. Stores at different locations have different
    /// images.
    pub fn locations(&self) -> Result<Vec<(RegionId, String)>, Error> {
        self.region.iter().enumerate().map(|(index, region)| Ok((region.id(index)?, region.location()))).collect()
    }

    /// Returns the limits of the regions and the costs of the links between them.
    pub fn topology(&self) -> Result<Topology, Error> {
        let limits =
            self.region.iter().enumerate().map(|(index, region)| Ok((region.id(index)?, region.limits(index)?)));
        let limits = limits.collect::<Result<Vec<_>, Error>>()?;
        let region_id = |index: usize, key: &str, name: &str| {
            let id = name.parse().map_err(|error| invalid(format!("link[{index}].{key}"), error))?;
            let missing = || invalid(format!("link[{index}].{key}"), format!("{id} is not one of [[region]]"));
            if limits.iter().any(|(region, _)| *region == id) { Ok(id) } else { Err(missing()) }
        };
        let costs = self.link.iter().enumerate().map(|(index, link)| {
            Ok(((region_id(index, "from", &link.from)?, region_id(index, "to", &link.to)?), link.cost))
        });
        let costs = costs.collect::<Result<Vec<_>, Error>>()?;
        Ok(Topology::new(limits, costs))
    }

    /// Returns the callers with their credentials. `fetched` keeps the key sets that are fetched.
    pub fn directory(&self, fetched: &mut JwksFetcher) -> Result<Authenticator, Error> {
        self.access().directory(self.hosts(), fetched)
    }

    /// Returns the principals with their policies.
    pub fn identities(&self) -> Result<Vec<Arc<Identity>>, Error> {
        self.access().identities()
    }

    /// Returns the condition keys that policies may use.
    #[must_use]
    pub fn condition_keys(&self) -> ram::Keys {
        self.access().condition_keys()
    }

    /// Returns the files that define access. A change of one of them triggers a reload.
    #[must_use]
    pub fn access_files(&self) -> Vec<PathBuf> {
        let tls = self.tls.iter().flat_map(|tls| {
            [Some(&tls.certificate_file), Some(&tls.key_file), tls.client_ca_file.as_ref()].into_iter().flatten()
        });
        self.file.iter().chain(self.access().files()).chain(tls).cloned().collect()
    }

    /// Returns the file of this configuration; empty if the configuration has none.
    #[must_use]
    pub fn config_file(&self) -> Vec<PathBuf> {
        self.file.iter().cloned().collect()
    }

    /// Returns the hosts for which signed requests are accepted.
    fn hosts(&self) -> Hosts {
        if self.server.hosts.is_empty() {
            let openapi = self.openapi.iter().map(|openapi| openapi.listen.ip());
            return Hosts::of_machine(openapi.chain([self.server.listen.ip()]));
        }
        Hosts::new(self.server.hosts.iter().cloned())
    }

    fn access(&self) -> access::Access<'_> {
        access::Access {
            principals: &self.principal,
            groups: &self.group,
            policies: &self.policy,
            issuers: &self.jwt,
            limits: &self.limits,
        }
    }
}

/// Combines the text of a file with the environment, which takes precedence.
fn figment(text: &str) -> Figment {
    let environment = Env::prefixed(PREFIX).filter(|key| key.as_str().contains(SEPARATOR)).split(SEPARATOR);
    Figment::from(Toml::string(text)).merge(environment)
}

/// Returns the entries of a list, which is empty if the section is missing. Returns `None` if the section is malformed.
fn section<T: serde::de::DeserializeOwned>(figment: &Figment, name: &str) -> Option<Vec<T>> {
    if figment.contains(name) { figment.extract_inner(name).ok() } else { Some(Vec::new()) }
}
