//! The configuration: one typed tree from a file and the environment.
//!
//! Every key can be given as `APPFERRY_SECTION__KEY`, which wins over the file. An unknown key is an error, and so is a value
//! that can't be used; each names the key and what was expected.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Env, Format as _, Toml},
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    domain::{RegionId, Regions},
    ram::{Document, Policy, Principal},
    region::Location,
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

/// Reads an address, and repeats what is none.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not of the form IP:PORT")))
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

/// `[server]`: the gRPC listener and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Where to listen.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Whether a listener that others can reach may do without TLS.
    pub allow_plaintext: bool,
    /// Calls that are carried out at the same time; one more is refused. Streams count until they have begun.
    pub max_in_flight: usize,
    /// Streams that one connection may have open.
    pub max_streams_per_connection: u32,
    /// The deadline of a call that names none, in seconds.
    pub default_deadline_seconds: u64,
    /// The latest deadline of a call, in seconds.
    pub max_deadline_seconds: u64,
    /// The longest life of a stream, in seconds; its client connects again and has lost nothing.
    pub max_stream_seconds: u64,
    /// How long a shutdown may take, in seconds.
    pub shutdown_seconds: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 50051),
            allow_plaintext: false,
            max_in_flight: 1_024,
            max_streams_per_connection: 1_024,
            default_deadline_seconds: 30,
            max_deadline_seconds: 60,
            max_stream_seconds: 3_600,
            shutdown_seconds: 20,
        }
    }
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

/// `[[region]]`: a region and its store.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its id.
    pub id: String,
    /// Its store, `dir://PATH`.
    pub store: String,
    /// Bytes that are kept free in the store.
    #[serde(default)]
    pub keep_free_bytes: u64,
}

/// `[[principal]]`: somebody who may call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalEntry {
    /// The RAM principal.
    pub arn: String,
    /// The SHA-256 of its bearer token, as 64 hexadecimal digits.
    pub token_sha256: String,
    /// The names of its policies.
    #[serde(default)]
    pub policies: Vec<String>,
}

/// `[[policy]]`: a RAM policy document.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyEntry {
    /// Its name.
    pub name: String,
    /// The document, as JSON.
    pub document: String,
}

/// `[worker]`: how images are carried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// The regions that are served; all if none is named.
    pub regions: Vec<String>,
    /// Images that are carried at the same time.
    pub concurrency: usize,
    /// How long a claim is good for without a sign of life, in milliseconds.
    pub lease_ms: u64,
    /// How often a sign of life is given and progress is written down, in milliseconds.
    pub heartbeat_ms: u64,
    /// How often to look for work without being told of any, in milliseconds.
    pub poll_ms: u64,
    /// How long a region may keep the others of its pass waiting, in milliseconds.
    pub patience_ms: u64,
    /// How long nothing at all may move before an attempt is given up, in milliseconds.
    pub stall_ms: u64,
    /// How many attempts may end with a fault.
    pub attempts: u32,
    /// The wait after the first fault, in milliseconds. It doubles from there.
    pub retry_first_ms: u64,
    /// The longest wait, in milliseconds.
    pub retry_longest_ms: u64,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            concurrency: 4,
            lease_ms: 15_000,
            heartbeat_ms: 500,
            poll_ms: 1_000,
            patience_ms: 5_000,
            stall_ms: 60_000,
            attempts: 6,
            retry_first_ms: 1_000,
            retry_longest_ms: 300_000,
        }
    }
}

/// A principal, the SHA-256 of its token, and its policies.
pub type Grant = (Principal, [u8; 32], Vec<Policy>);

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
        for (place, region) in self.region.iter().enumerate() {
            Self::location(place, region)?;
        }
        self.worker_regions(&regions)?;
        self.principals().map(drop)
    }

    /// The configured regions.
    pub fn regions(&self) -> Result<Regions, Error> {
        let mut ids = Vec::with_capacity(self.region.len());
        for (place, region) in self.region.iter().enumerate() {
            let id: RegionId = region.id.parse().map_err(|error| value(format!("region[{place}].id"), error))?;
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

    /// Where the stores are.
    pub fn locations(&self) -> Result<Vec<(RegionId, Location, u64)>, Error> {
        let located = self.region.iter().enumerate().map(|(place, region)| {
            let (id, location) = Self::location(place, region)?;
            Ok((id, location, region.keep_free_bytes))
        });
        located.collect()
    }

    fn location(place: usize, region: &Region) -> Result<(RegionId, Location), Error> {
        let id = region.id.parse().map_err(|error| value(format!("region[{place}].id"), error))?;
        let location = region.store.parse().map_err(|error| value(format!("region[{place}].store"), error))?;
        Ok((id, location))
    }

    /// The regions that this process's workers serve.
    pub fn worker_regions(&self, regions: &Regions) -> Result<Vec<RegionId>, Error> {
        if self.worker.regions.is_empty() {
            return Ok(regions.iter().cloned().collect());
        }
        let parse = |name: &String| {
            let id: RegionId = name.parse().map_err(|error| value("worker.regions", error))?;
            if regions.contains(&id) {
                Ok(id)
            } else {
                Err(value("worker.regions", format!("{id} is not one of [[region]]")))
            }
        };
        self.worker.regions.iter().map(parse).collect()
    }

    /// The principals, each with the digest of its token and its policies.
    pub fn principals(&self) -> Result<Vec<Grant>, Error> {
        let mut policies: Vec<Policy> = Vec::with_capacity(self.policy.len());
        for (place, entry) in self.policy.iter().enumerate() {
            let document: Document =
                entry.document.parse().map_err(|error| value(format!("policy[{place}].document"), error))?;
            if policies.iter().any(|policy| *policy.name == *entry.name) {
                return Err(value(format!("policy[{place}].name"), format!("{:?} is configured twice", entry.name)));
            }
            policies.push(Policy { name: entry.name.as_str().into(), document });
        }
        let read = |(place, entry): (usize, &PrincipalEntry)| {
            let arn = entry.arn.parse().map_err(|error| value(format!("principal[{place}].arn"), error))?;
            let mut digest = [0; 32];
            // The value is not repeated: somebody may have put the token itself there.
            hex::decode_to_slice(&entry.token_sha256, &mut digest)
                .map_err(|_| value(format!("principal[{place}].token_sha256"), "expected 64 hexadecimal digits"))?;
            let named = |name: &String| {
                let found = policies.iter().find(|policy| *policy.name == **name).cloned();
                found.ok_or_else(|| {
                    value(format!("principal[{place}].policies"), format!("{name:?} is not one of [[policy]]"))
                })
            };
            Ok((arn, digest, entry.policies.iter().map(named).collect::<Result<_, Error>>()?))
        };
        self.principal.iter().enumerate().map(read).collect()
    }
}

impl Server {
    fn check(&self) -> Result<(), Error> {
        if !self.listen.ip().is_loopback() && !self.allow_plaintext {
            return Err(value(
                "server.listen",
                format!(
                    "{} can be reached by others, and tokens would travel in clear: listen on a loopback address behind \
                     something that speaks TLS, or set server.allow_plaintext = true",
                    self.listen
                ),
            ));
        }
        positive(
            "server",
            &[
                ("max_in_flight", self.max_in_flight as u64),
                ("max_streams_per_connection", self.max_streams_per_connection.into()),
                ("default_deadline_seconds", self.default_deadline_seconds),
                ("max_deadline_seconds", self.max_deadline_seconds),
                ("max_stream_seconds", self.max_stream_seconds),
                ("shutdown_seconds", self.shutdown_seconds),
            ],
        )
    }
}

impl Worker {
    fn check(&self) -> Result<(), Error> {
        positive(
            "worker",
            &[
                ("concurrency", self.concurrency as u64),
                ("lease_ms", self.lease_ms),
                ("heartbeat_ms", self.heartbeat_ms),
                ("poll_ms", self.poll_ms),
                ("patience_ms", self.patience_ms),
                ("stall_ms", self.stall_ms),
                ("attempts", self.attempts.into()),
                ("retry_first_ms", self.retry_first_ms),
                ("retry_longest_ms", self.retry_longest_ms),
            ],
        )?;
        if self.heartbeat_ms.saturating_mul(3) > self.lease_ms {
            return Err(value("worker.heartbeat_ms", "it must be at most a third of worker.lease_ms"));
        }
        Ok(())
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
