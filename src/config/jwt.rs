//! `[[jwt]]`: who signs JSON Web Tokens and is believed.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jsonwebtoken::Algorithm;
use serde::Deserialize;
use url::Url;

use super::{Error, value};
use crate::identity::{Issuer, JwksFetcher, JwksSource, KeySet, SharedKeySet};

/// How signatures are made that are accepted.
const ALGORITHMS: [(&str, Algorithm); 3] =
    [("RS256", Algorithm::RS256), ("ES256", Algorithm::ES256), ("EdDSA", Algorithm::EdDSA)];

/// `[[jwt]]`: an issuer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtEntry {
    /// Its name, as its tokens have it in `iss`.
    pub issuer: String,
    /// Whom its tokens must be made for: one of these is in `aud`.
    pub audiences: Vec<String>,
    /// How it signs: `RS256`, `ES256`, `EdDSA`.
    #[serde(default = "all")]
    pub algorithms: Vec<String>,
    /// The file with its public keys, a JSON Web Key Set.
    pub jwks_file: Option<PathBuf>,
    /// Where they are fetched from.
    pub jwks_url: Option<Url>,
    /// Certificates in PEM form that are trusted for that beside the system's.
    pub jwks_ca_file: Option<PathBuf>,
    /// The file with a bearer token to show there.
    pub jwks_token_file: Option<PathBuf>,
    /// How often they are fetched, in seconds.
    #[serde(default = "five_minutes")]
    pub refresh_seconds: u64,
    /// By how much clocks may differ, in seconds.
    #[serde(default = "half_a_minute")]
    pub leeway_seconds: u64,
    /// Keys for conditions of policies, and the paths of the claims that they stand for.
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
    /// The keys of conditions that its tokens can have.
    pub(super) fn condition_keys(&self) -> impl Iterator<Item = Arc<str>> {
        self.conditions.keys().map(|key| key.as_str().into())
    }

    /// The issuer, for nobody yet.
    pub(super) fn issuer(&self, place: usize, fetched: &mut JwksFetcher) -> Result<Issuer, Error> {
        let at = |key: &str| format!("jwt[{place}].{key}");
        if self.issuer.is_empty() {
            return Err(value(at("issuer"), "it is empty"));
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(value(
                at("audiences"),
                "a token that was made for somebody else must not count: name whom it is for",
            ));
        }
        let algorithm = |name: &String| {
            let known = ALGORITHMS.iter().find(|(known, _)| known == name).map(|(_, algorithm)| *algorithm);
            known.ok_or_else(|| value(at("algorithms"), format!("{name:?} is none of RS256, ES256, EdDSA")))
        };
        let algorithms = self.algorithms.iter().map(algorithm).collect::<Result<Vec<_>, _>>()?;
        if algorithms.is_empty() {
            return Err(value(at("algorithms"), "it is empty"));
        }
        if let Some(key) = self.conditions.keys().find(|key| !is_condition_key(key)) {
            let why = format!("{key:?} is not of the form PREFIX:NAME with a prefix other than acs");
            return Err(value(at("conditions"), why));
        }
        if self.leeway_seconds > 600 {
            return Err(value(at("leeway_seconds"), format!("{} is more than 600", self.leeway_seconds)));
        }
        Ok(Issuer {
            name: self.issuer.clone(),
            audiences: self.audiences.clone(),
            algorithms,
            leeway: Duration::from_secs(self.leeway_seconds),
            keys: self.keys(place, fetched)?,
            mappings: Vec::new(),
            claims: self.conditions.iter().map(|(key, path)| (key.as_str().into(), path.clone())).collect(),
        })
    }

    fn keys(&self, place: usize, fetched: &mut JwksFetcher) -> Result<SharedKeySet, Error> {
        let at = |key: &str| format!("jwt[{place}].{key}");
        let read = |key: &str, file: &PathBuf| {
            std::fs::read(file).map_err(|error| value(at(key), format!("{}: {error}", file.display())))
        };
        match (&self.jwks_file, &self.jwks_url) {
            (Some(file), None) => {
                let set = KeySet::parse(&read("jwks_file", file)?);
                let wrong = |error| value(at("jwks_file"), format!("{}: {error}", file.display()));
                set.map(SharedKeySet::fixed).map_err(wrong)
            }
            (None, Some(url)) => {
                let loopback = match url.host() {
                    Some(url::Host::Ipv4(address)) => address.is_loopback(),
                    Some(url::Host::Ipv6(address)) => address.is_loopback(),
                    _ => false,
                };
                if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
                    return Err(value(at("jwks_url"), format!("{url} is not an https URL")));
                }
                if !(10..=86_400).contains(&self.refresh_seconds) {
                    let why = format!("{} is not from 10 to 86400", self.refresh_seconds);
                    return Err(value(at("refresh_seconds"), why));
                }
                Ok(fetched.keys(JwksSource {
                    url: url.clone(),
                    certificates: self.jwks_ca_file.as_ref().map(|file| read("jwks_ca_file", file)).transpose()?,
                    token_file: self.jwks_token_file.clone(),
                    interval: Duration::from_secs(self.refresh_seconds),
                }))
            }
            _ => Err(value(at("jwks_file"), "exactly one of jwks_file and jwks_url is needed")),
        }
    }
}

/// Keys that begin with `acs:` have a meaning already.
fn is_condition_key(key: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/".contains(&b));
    let parts = key.split_once(':');
    parts.is_some_and(|(prefix, name)| plain(prefix) && plain(name) && !prefix.eq_ignore_ascii_case("acs"))
}
