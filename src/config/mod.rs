//! The configuration: one typed tree from a file and the environment.
//!
//! Every key can be given as `APPFERRY_SECTION__KEY`, which wins over the file. An unknown key is an error, and so is a value
//! that can't be used; each names the key and what was expected.

mod access;
mod alibaba;
mod audit;
mod backend;
mod database;
mod housekeeping;
mod http;
mod jwt;
mod log;
mod network;
mod openapi;
mod region;
mod region_credentials;
mod server;
mod tls;
mod worker;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use figment::{
    Figment,
    providers::{Env, Format as _, Toml},
};
use serde::Deserialize;

pub use access::{AccessKeyEntry, ClaimsEntry, GroupEntry, Limits, PolicyEntry, PrincipalEntry, TokenEntry};
pub use alibaba::Alibaba;
pub use audit::Audit;
pub use backend::Backend;
pub use database::Database;
pub use housekeeping::Housekeeping;
pub use http::Http;
pub use jwt::JwtEntry;
pub use log::Log;
pub use network::Network;
pub use openapi::OpenApi;
pub use region::{Link, OpenStore, Region};
pub use server::Server;
pub use tls::Tls;
pub use worker::Worker;

use crate::{
    domain::{RegionId, Regions, Secret, relay::Topology},
    identity::{Authenticator, Identity, JwksFetcher, ListedCredentials, acs3::Hosts},
    ram,
    region::SecretSource,
};

/// The prefix of the variables that override keys.
const PREFIX: &str = "APPFERRY_";
/// What stands between a section and a key in their names.
const SEPARATOR: &str = "__";

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is not of the right form; names the keys.
    #[error("{}", describe(.0))]
    Form(Box<figment::Error>),
    /// A value can't be used.
    #[error("{key}: {problem}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
}

/// What is wrong with a form, each fault with its key.
fn describe(error: &figment::Error) -> String {
    let one = |error: figment::Error| {
        let key = error.path.join(".");
        if key.is_empty() { error.kind.to_string() } else { format!("{key}: {}", error.kind) }
    };
    error.clone().into_iter().map(one).collect::<Vec<_>>().join("; ")
}

fn value(key: impl Into<String>, problem: impl Display) -> Error {
    Error::Value { key: key.into(), problem: problem.to_string() }
}

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gRPC listener.
    #[serde(default)]
    pub server: Server,
    /// The listener of the original's HTTP form.
    pub openapi: Option<OpenApi>,
    /// The listener for probes and for Prometheus.
    pub http: Option<Http>,
    /// Our certificate, and whose we take from callers.
    pub tls: Option<Tls>,
    /// The database.
    pub database: Database,
    /// The home region.
    pub home: Home,
    /// The regions.
    pub region: Vec<Region>,
    /// How what is elsewhere is reached.
    #[serde(default)]
    pub network: Network,
    /// How Alibaba Cloud is spoken to, where regions are its own.
    pub alibaba: Option<Alibaba>,
    /// What it costs to go from one to another.
    #[serde(default)]
    pub link: Vec<Link>,
    /// Who may call.
    #[serde(default)]
    pub principal: Vec<PrincipalEntry>,
    /// Users that have policies in common.
    #[serde(default)]
    pub group: Vec<GroupEntry>,
    /// What they may do.
    #[serde(default)]
    pub policy: Vec<PolicyEntry>,
    /// Who signs tokens and is believed.
    #[serde(default)]
    pub jwt: Vec<JwtEntry>,
    /// How much each principal may do.
    #[serde(default)]
    pub limits: Limits,
    /// Where decisions are written down.
    #[serde(default)]
    pub audit: Audit,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
    /// The workers.
    #[serde(default)]
    pub worker: Worker,
    /// What is done for all.
    #[serde(default)]
    pub housekeeping: Housekeeping,
    /// The file that it was read from.
    #[serde(skip)]
    file: Option<PathBuf>,
}

/// `[home]`: where images come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Home {
    /// The id of the home region, which is one of `[[region]]`.
    pub region: String,
}

impl Config {
    /// Reads a file, and the environment over it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Ok(Self { file: Some(path.to_owned()), ..Self::parse(&text)? })
    }

    /// Reads it again from where it came; one that came from no file is as it was.
    pub fn again(&self) -> Result<Self, Error> {
        self.file.as_deref().map_or_else(|| Ok(self.clone()), Self::load)
    }

    /// Whom the file lists now, whatever else is wrong with it. Nothing where that can't be said: where it is no file of this form, or
    /// has no principals at all, as one has that is being written.
    #[must_use]
    pub fn listed_again(&self) -> Option<ListedCredentials> {
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

    /// Reads a text in the form of the file, and the environment over it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = figment(text).extract().map_err(|error| Error::Form(Box::new(error)))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what can't be used, before anything is started.
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

    /// The configured regions.
    pub fn regions(&self) -> Result<Regions, Error> {
        let mut ids = Vec::with_capacity(self.region.len());
        for (place, region) in self.region.iter().enumerate() {
            let id = region.id(place)?;
            if ids.contains(&id) {
                return Err(value(format!("region[{place}].id"), format!("{id} is configured twice")));
            }
            if id.as_str() == "all" {
                return Err(value(format!("region[{place}].id"), "\"all\" stands for all regions and names none"));
            }
            ids.push(id);
        }
        let home = self.home.region.parse().map_err(|error| value("home.region", error))?;
        if !ids.contains(&home) {
            return Err(value("home.region", format!("{home} is not one of [[region]]")));
        }
        Ok(Regions::new(home, ids))
    }

    /// The store of each region, as it may be shown: what another one is, holds other images.
    pub fn locations(&self) -> Result<Vec<(RegionId, String)>, Error> {
        self.region.iter().enumerate().map(|(place, region)| Ok((region.id(place)?, region.location()))).collect()
    }

    /// The limits of the regions, and the costs of the links between them.
    pub fn topology(&self) -> Result<Topology, Error> {
        let limits =
            self.region.iter().enumerate().map(|(place, region)| Ok((region.id(place)?, region.limits(place)?)));
        let limits = limits.collect::<Result<Vec<_>, Error>>()?;
        let known = |place: usize, key: &str, name: &str| {
            let id = name.parse().map_err(|error| value(format!("link[{place}].{key}"), error))?;
            let missing = || value(format!("link[{place}].{key}"), format!("{id} is not one of [[region]]"));
            if limits.iter().any(|(region, _)| *region == id) { Ok(id) } else { Err(missing()) }
        };
        let costs =
            self.link.iter().enumerate().map(|(place, link)| {
                Ok(((known(place, "from", &link.from)?, known(place, "to", &link.to)?), link.cost))
            });
        let costs = costs.collect::<Result<Vec<_>, Error>>()?;
        Ok(Topology::new(limits, costs))
    }

    /// Everybody who may call. Keys that are fetched come from `fetched`.
    pub fn directory(&self, fetched: &mut JwksFetcher) -> Result<Authenticator, Error> {
        self.access().directory(self.hosts(), fetched)
    }

    /// The principals, with what they may do.
    pub fn identities(&self) -> Result<Vec<Arc<Identity>>, Error> {
        self.access().identities()
    }

    /// The keys that conditions of policies can be about.
    #[must_use]
    pub fn condition_keys(&self) -> ram::Keys {
        self.access().condition_keys()
    }

    /// The files that say who may call, which are read again when they change.
    #[must_use]
    pub fn access_files(&self) -> Vec<PathBuf> {
        let tls = self.tls.iter().flat_map(|tls| {
            [Some(&tls.certificate_file), Some(&tls.key_file), tls.client_ca_file.as_ref()].into_iter().flatten()
        });
        self.file.iter().chain(self.access().files()).chain(tls).cloned().collect()
    }

    /// The file that it was read from, if it was.
    #[must_use]
    pub fn own_file(&self) -> Vec<PathBuf> {
        self.file.iter().cloned().collect()
    }

    /// The hosts that requests may be signed for.
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

/// A text in the form of the file, and the environment over it.
fn figment(text: &str) -> Figment {
    let environment = Env::prefixed(PREFIX).filter(|key| key.as_str().contains(SEPARATOR)).split(SEPARATOR);
    Figment::from(Toml::string(text)).merge(environment)
}

/// A list of entries, which may be left out. Nothing if it is not of its form.
fn section<T: serde::de::DeserializeOwned>(figment: &Figment, name: &str) -> Option<Vec<T>> {
    if figment.contains(name) { figment.extract_inner(name).ok() } else { Some(Vec::new()) }
}

/// A secret from a variable or a file; one of them at most.
fn secret(keys: [&str; 2], variable: Option<&String>, file: Option<&PathBuf>) -> Result<Option<Secret>, Error> {
    let text = match (variable, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(value(keys[0], format!("there is {} as well", keys[1]))),
        (Some(name), None) => {
            std::env::var(name).map_err(|_| value(keys[0], format!("the variable {name} is not set")))?
        }
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|error| value(keys[1], format!("{}: {error}", file.display())))?
        }
    };
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() { Err(value(keys[0], "the secret is empty")) } else { Ok(Some(Secret(text))) }
}

/// Where a secret is kept: in a variable, or in a file that is read again whenever the secret is needed. Whatever it is, there is one.
fn secret_source(
    keys: [&str; 2],
    variable: Option<&String>,
    file: Option<&PathBuf>,
) -> Result<Option<SecretSource>, Error> {
    let now = secret(keys, variable, file)?;
    Ok(now.map(|secret| file.map_or(SecretSource::Fixed(secret), |path| SecretSource::File(path.clone()))))
}

/// No number that says how much or how long may be nothing, or so much that it overflows.
fn positive(section: &str, keys: &[(&str, u64)]) -> Result<(), Error> {
    match keys.iter().find(|(_, number)| *number == 0 || *number > 1 << 40) {
        Some((key, number)) => Err(value(format!("{section}.{key}"), format!("{number} is not from 1 to 2^40"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    const LEAST: &str = r#"
        [database]
        url = "sqlite://state.db"
        [home]
        region = "a"
        [[region]]
        id = "a"
        store = "dir:///a"
    "#;

    fn refusal(more: &str) -> String {
        Config::parse(&format!("{LEAST}\n{more}")).expect_err(more).to_string()
    }

    #[test]
    fn the_least_configuration_is_one() {
        let config = Config::parse(LEAST).expect("it is one");
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:50051");
    }

    #[test]
    fn a_refusal_names_the_key() {
        for (more, named) in [
            ("[server]\nlisten = 5", "server.listen"),
            ("[server]\nlisen = \"127.0.0.1:1\"", "lisen"),
            ("[server]\nlisten = \"0.0.0.0:50051\"", "server.allow_plaintext = true"),
            ("[server]\nmax_in_flight = 0", "server.max_in_flight"),
            ("[housekeeping]\ninterval_ms = 0", "housekeeping.interval_ms"),
            ("[worker]\nheartbeat_ms = 6000", "worker.heartbeat_ms"),
            ("[worker]\nregions = [\"b\"]", "worker.regions: b is not one of [[region]]"),
            ("[[region]]\nid = \"a\"\nstore = \"dir:///b\"", "region[1].id: a is configured twice"),
            ("[[region]]\nid = \"b\"\nstore = \"ftp://b\"", "region[1].store"),
            ("[[region]]\nid = \"../b\"\nstore = \"dir:///b\"", "region[1].id"),
            ("[[region]]\nid = \"all\"\nstore = \"dir:///b\"", "region[1].id"),
            ("[[policy]]\nname = \"p\"\ndocument = '{}'", "policy[0].document: it has no Version"),
            ("[[principal]]\narn = \"bob\"\ntoken_sha256 = \"\"", "principal[0].arn"),
            ("[[principal]]\narn = \"acs:ram::1:user/bob\"\ntoken_sha256 = \"secret\"", "principal[0].token_sha256"),
            ("unparsable", "TOML parse error"),
            ("[nonsense]\na = 1", "nonsense"),
        ] {
            let refusal = refusal(more);
            assert!(refusal.contains(named), "{more:?} was refused with {refusal:?}");
            assert!(!refusal.contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn a_database_that_can_t_be_one_is_refused_and_its_password_not_repeated() {
        for (url, named) in [
            ("oracle://user:secret@host/name", "\"oracle\" is no database"),
            ("postgres://user:secret@host:port/name", "invalid port number"),
            ("user:secret@host", "\"user\" is no database"),
        ] {
            let text = LEAST.replace("sqlite://state.db", url);
            let refusal = Config::parse(&text).expect_err(url).to_string();
            assert!(refusal.contains("database.url") && refusal.contains(named), "{url}: {refusal}");
            assert!(!refusal.contains("secret"), "{refusal}");
        }
        let config =
            Config::parse(&LEAST.replace("sqlite://state.db", "postgres://user:secret@host/name")).expect("it is one");
        assert!(!format!("{config:?}").contains("user:secret"));
    }

    #[test]
    fn what_is_reachable_may_do_without_tls_only_if_it_is_said() {
        let text = format!("{LEAST}\n[server]\nlisten = \"0.0.0.0:1\"\nallow_plaintext = true");
        assert!(Config::parse(&text).is_ok());
    }
}
