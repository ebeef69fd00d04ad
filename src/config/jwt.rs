//! `[[jwt]]`: the trusted issuers of JSON Web Tokens.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jsonwebtoken::Algorithm;
use serde::Deserialize;
use url::Url;

use super::{Error, invalid};
use crate::identity::{Issuer, JwksFetcher, JwksSource, KeySet, SharedKeySet};

/// The accepted signature algorithms.
const ALGORITHMS: [(&str, Algorithm); 3] =
    [("RS256", Algorithm::RS256), ("ES256", Algorithm::ES256), ("EdDSA", Algorithm::EdDSA)];

/// `[[jwt]]`: a trusted issuer of JSON Web Tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtEntry {
    /// The issuer, as in the `iss` claim.
    pub issuer: String,
    /// The accepted audiences: the `aud` claim must have one of them.
    pub audiences: Vec<String>,
    /// The accepted signature algorithms: `RS256`, `ES256`, `EdDSA`.
    #[serde(default = "all")]
    pub algorithms: Vec<String>,
    /// The file with the issuer's public keys, a JSON Web Key Set.
    pub jwks_file: Option<PathBuf>,
    /// The URL from which the keys are fetched.
    pub jwks_url: Option<Url>,
    /// A file with certificates in PEM form that are trusted for this URL, in addition to the system's.
    pub jwks_ca_file: Option<PathBuf>,
    /// The file with a bearer token for this URL.
    pub jwks_token_file: Option<PathBuf>,
    /// The interval between two fetches of the keys, in seconds.
    #[serde(default = "five_minutes")]
    pub refresh_seconds: u64,
    /// The tolerated difference between the clocks of the issuer and of this service, in seconds.
    #[serde(default = "half_a_minute")]
    pub leeway_seconds: u64,
    /// Condition keys for policies, with the paths of the claims that have their values.
    #[serde(default)]
    pub conditions: BTreeMap<String, String>,
}

fn all() -> Vec<String> {
    ALGORITHMS.map(|(name, _)| name.to_owned()).into()
}

fn five_minutes() -> u64 {
    300
}

fn half_a_minute() -> u64 {
    30
}

impl JwtEntry {
    /// Returns the condition keys of the issuer's tokens.
    pub(super) fn condition_keys(&self) -> impl Iterator<Item = Arc<str>> {
        self.conditions.keys().map(|key| key.as_str().into())
    }

    /// Returns the issuer, to which no principals are mapped yet.
    pub(super) fn issuer(&self, index: usize, fetched: &mut JwksFetcher) -> Result<Issuer, Error> {
        let at = |key: &str| format!("jwt[{index}].{key}");
        if self.issuer.is_empty() {
            return Err(invalid(at("issuer"), "empty; expected the value of the iss claim"));
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(invalid(
                at("audiences"),
                "empty; a token for another audience must be rejected, so set the audience of this service",
            ));
        }
        let algorithm = |name: &String| {
            let supported = ALGORITHMS.iter().find(|(supported, _)| supported == name);
            let algorithm = supported.map(|(_, algorithm)| *algorithm);
            algorithm.ok_or_else(|| {
                invalid(at("algorithms"), format!("{name:?} is not supported; expected RS256, ES256 or EdDSA"))
            })
        };
        let algorithms = self.algorithms.iter().map(algorithm).collect::<Result<Vec<_>, _>>()?;
        if algorithms.is_empty() {
            return Err(invalid(at("algorithms"), "empty; expected RS256, ES256 or EdDSA"));
        }
        if let Some(key) = self.conditions.keys().find(|key| !is_condition_key(key)) {
            let why = format!("{key:?} is not of the form PREFIX:NAME with a prefix other than acs");
            return Err(invalid(at("conditions"), why));
        }
        if self.leeway_seconds > 600 {
            return Err(invalid(at("leeway_seconds"), format!("{} is more than 600 seconds", self.leeway_seconds)));
        }
        Ok(Issuer {
            name: self.issuer.clone(),
            audiences: self.audiences.clone(),
            algorithms,
            leeway: Duration::from_secs(self.leeway_seconds),
            keys: self.keys(index, fetched)?,
            mappings: Vec::new(),
            claims: self.conditions.iter().map(|(key, path)| (key.as_str().into(), path.clone())).collect(),
        })
    }

    fn keys(&self, index: usize, fetched: &mut JwksFetcher) -> Result<SharedKeySet, Error> {
        let at = |key: &str| format!("jwt[{index}].{key}");
        let read = |key: &str, file: &PathBuf| {
            std::fs::read(file).map_err(|error| invalid(at(key), format!("failed to read {}: {error}", file.display())))
        };
        match (&self.jwks_file, &self.jwks_url) {
            (Some(file), None) => {
                let set = KeySet::parse(&read("jwks_file", file)?);
                let failed = |error| invalid(at("jwks_file"), format!("{}: {error}", file.display()));
                set.map(SharedKeySet::fixed).map_err(failed)
            }
            (None, Some(url)) => {
                let loopback = match url.host() {
                    Some(url::Host::Ipv4(address)) => address.is_loopback(),
                    Some(url::Host::Ipv6(address)) => address.is_loopback(),
                    _ => false,
                };
                if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
                    return Err(invalid(at("jwks_url"), format!("{url} is not an https URL")));
                }
                if !(10..=86_400).contains(&self.refresh_seconds) {
                    let why = format!("{} is not from 10 to 86400", self.refresh_seconds);
                    return Err(invalid(at("refresh_seconds"), why));
                }
                Ok(fetched.keys(JwksSource {
                    url: url.clone(),
                    certificates: self.jwks_ca_file.as_ref().map(|file| read("jwks_ca_file", file)).transpose()?,
                    token_file: self.jwks_token_file.clone(),
                    interval: Duration::from_secs(self.refresh_seconds),
                }))
            }
            _ => Err(invalid(at("jwks_file"), "set either jwks_file or jwks_url")),
        }
    }
}

/// Returns whether a name is a valid condition key. The prefix `acs:` is reserved.
fn is_condition_key(key: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/".contains(&b));
    let parts = key.split_once(':');
    parts.is_some_and(|(prefix, name)| plain(prefix) && plain(name) && !prefix.eq_ignore_ascii_case("acs"))
}
