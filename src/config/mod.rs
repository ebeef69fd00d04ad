//! The configuration: one typed tree from a file and the environment.
//!
//! Every key can be given as `APPFERRY_SECTION__KEY`, which wins over the file. An unknown key is an error, and so is a value
//! that can't be used; each names the key and what was expected.

mod principal;
mod region;
mod server;
mod worker;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Env, Format as _, Toml},
};
use serde::Deserialize;

pub use principal::{Grant, PolicyEntry, PrincipalEntry};
pub use region::{Link, Open, Region};
pub use server::Server;
pub use worker::Worker;

use crate::domain::{RegionId, Regions, relay::Topology};

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
    /// The database.
    pub database: Database,
    /// The home region.
    pub home: Home,
    /// The regions.
    pub region: Vec<Region>,
    /// What it costs to go from one to another.
    #[serde(default)]
    pub link: Vec<Link>,
    /// Who may call.
    #[serde(default)]
    pub principal: Vec<PrincipalEntry>,
    /// What they may do.
    #[serde(default)]
    pub policy: Vec<PolicyEntry>,
    /// The workers.
    #[serde(default)]
    pub worker: Worker,
}

/// `[database]`: where the state is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `sqlite://PATH`.
    pub url: String,
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
        Self::parse(&text)
    }

    /// Reads a text in the form of the file, and the environment over it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let environment = Env::prefixed(PREFIX).filter(|key| key.as_str().contains(SEPARATOR)).split(SEPARATOR);
        let config: Self = Figment::from(Toml::string(text))
            .merge(environment)
            .extract()
            .map_err(|error| Error::Form(Box::new(error)))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what can't be used, before anything is started.
    pub fn check(&self) -> Result<(), Error> {
        self.server.check()?;
        self.worker.check()?;
        let regions = self.regions()?;
        self.stores()?;
        self.topology()?;
        self.worker.served(&regions)?;
        self.principals().map(drop)
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

    /// What is needed to open the stores.
    pub fn stores(&self) -> Result<Vec<(RegionId, Open)>, Error> {
        self.region.iter().enumerate().map(|(place, region)| Ok((region.id(place)?, region.open(place)?))).collect()
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

    /// The principals, each with the digest of its token and its policies.
    pub fn principals(&self) -> Result<Vec<Grant>, Error> {
        principal::grants(&self.principal, &self.policy)
    }
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
            ("[worker]\nheartbeat_ms = 6000", "worker.heartbeat_ms"),
            ("[worker]\nregions = [\"b\"]", "worker.regions: b is not one of [[region]]"),
            ("[[region]]\nid = \"a\"\nstore = \"dir:///b\"", "region[1].id: a is configured twice"),
            ("[[region]]\nid = \"b\"\nstore = \"ftp://b\"", "region[1].store"),
            ("[[region]]\nid = \"../b\"\nstore = \"dir:///b\"", "region[1].id"),
            ("[[region]]\nid = \"all\"\nstore = \"dir:///b\"", "region[1].id"),
            ("[[policy]]\nname = \"p\"\ndocument = '{}'", "policy[0].document: missing field `Version`"),
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
    fn what_is_reachable_may_do_without_tls_only_if_it_is_said() {
        let text = format!("{LEAST}\n[server]\nlisten = \"0.0.0.0:1\"\nallow_plaintext = true");
        assert!(Config::parse(&text).is_ok());
    }
}
