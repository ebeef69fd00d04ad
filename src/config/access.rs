//! `[[principal]]`, `[[group]]` and `[[policy]]`: who may call, and what they may do.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use serde::Deserialize;

use super::{Error, jwt::JwtEntry, positive, secret, value};
use crate::{
    domain::Timestamp,
    identity::{
        Authenticator, CertificateName, Credentials, Identity, JwksFetcher, ListedCredentials, Mapping, Quota, Token,
        acs3::{AccessKey, Hosts},
    },
    ram::{AttachedPolicy, Attachment, Document, Keys, Policies, Policy, Principal},
};

/// `[[principal]]`: somebody who may call, everything that proves who it is, and what it may do.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrincipalEntry {
    /// The RAM principal.
    pub arn: String,
    /// The SHA-256 of a bearer token, as 64 hexadecimal digits.
    pub token_sha256: Option<String>,
    /// Further bearer tokens.
    pub token: Vec<TokenEntry>,
    /// Claims of JSON Web Tokens that are for it.
    pub jwt: Vec<ClaimsEntry>,
    /// Names in client certificates that are its: SPIFFE IDs and DNS names.
    pub certificates: Vec<String>,
    /// Its access keys.
    pub access_key: Vec<AccessKeyEntry>,
    /// The names of the groups that it is in; for users.
    pub groups: Vec<String>,
    /// The names of its policies.
    pub policies: Vec<String>,
    /// Calls a second, instead of `[limits]`.
    pub calls_per_second: Option<u32>,
    /// Calls and streams that it may have open at the same time, instead of `[limits]`.
    pub max_in_flight: Option<u32>,
}

/// `[[principal.token]]`: a bearer token.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// The SHA-256 of it, as 64 hexadecimal digits.
    pub sha256: String,
    /// When it ends, as RFC 3339 writes it.
    pub expires: Option<String>,
}

/// `[[principal.jwt]]`: claims that a token has which is for the principal.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimsEntry {
    /// The issuer, one of `[[jwt]]`.
    pub issuer: String,
    /// Paths of claims, and their values.
    pub claims: HashMap<String, String>,
}

/// `[[principal.access_key]]`: a key that requests are signed with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKeyEntry {
    /// Its id.
    pub id: String,
    /// The variable that holds its secret.
    pub secret_env: Option<String>,
    /// The file that holds it.
    pub secret_file: Option<PathBuf>,
}

/// `[[group]]`: users that have policies in common.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    /// Its name.
    pub name: String,
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
    pub document: Option<String>,
    /// The file that has it.
    pub file: Option<PathBuf>,
}

/// `[limits]`: how much one caller may do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Calls a second of each principal, and as many at once.
    pub calls_per_second: Option<u32>,
    /// Calls and streams that each principal may have open at the same time.
    pub max_in_flight: u32,
    /// Credentials from one source that may prove nothing, a minute, and as many at once. One more is told to wait, and counted instead of
    /// written down by itself. What is right is never refused for what was wrong.
    pub failed_credentials_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { calls_per_second: None, max_in_flight: Quota::MAX_IN_FLIGHT, failed_credentials_per_minute: 120 }
    }
}

impl Limits {
    /// Refuses what can't be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        positive(
            "limits",
            &[
                ("max_in_flight", self.max_in_flight.into()),
                ("failed_credentials_per_minute", self.failed_credentials_per_minute.into()),
            ],
        )
    }
}

/// What `[[principal]]`, `[[group]]`, `[[policy]]`, `[[jwt]]` and `[limits]` say together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access<'c> {
    pub principals: &'c [PrincipalEntry],
    pub groups: &'c [GroupEntry],
    pub policies: &'c [PolicyEntry],
    pub issuers: &'c [JwtEntry],
    pub limits: &'c Limits,
}

impl Access<'_> {
    /// Everybody who may call, with every proof of who they are; requests may be signed for `hosts`. Keys that are fetched come from
    /// `fetched`.
    pub fn directory(&self, hosts: Hosts, fetched: &mut JwksFetcher) -> Result<Authenticator, Error> {
        let identities = self.identities()?;
        let mut parts = Credentials { hosts, ..Credentials::default() };
        for (place, entry) in self.issuers.iter().enumerate() {
            if self.issuers[..place].iter().any(|earlier| earlier.issuer == entry.issuer) {
                return Err(value(format!("jwt[{place}].issuer"), format!("{:?} is configured twice", entry.issuer)));
            }
            parts.issuers.push(entry.issuer(place, fetched)?);
        }
        for (place, (entry, identity)) in self.principals.iter().zip(&identities).enumerate() {
            let at = |key: &str| format!("principal[{place}].{key}");
            let holder = || Arc::clone(identity);
            if let Some(sha256) = &entry.token_sha256 {
                let digest = digest(&at("token_sha256"), sha256)?;
                parts.tokens.push(Token { digest, expires: None, holder: holder() });
            }
            for (n, token) in entry.token.iter().enumerate() {
                let digest = digest(&at(&format!("token[{n}].sha256")), &token.sha256)?;
                let expires = token.expires.as_deref().map(|text| {
                    let none = || format!("{text:?} is no time like 2027-01-31T00:00:00Z");
                    Timestamp::parse(text).ok_or_else(|| value(at(&format!("token[{n}].expires")), none()))
                });
                parts.tokens.push(Token { digest, expires: expires.transpose()?, holder: holder() });
            }
            for (n, of) in entry.jwt.iter().enumerate() {
                let issuer = parts.issuers.iter_mut().find(|issuer| issuer.name == of.issuer).ok_or_else(|| {
                    value(at(&format!("jwt[{n}].issuer")), format!("{:?} is not one of [[jwt]]", of.issuer))
                })?;
                if of.claims.is_empty() {
                    return Err(value(at(&format!("jwt[{n}].claims")), "without any, every token would be for it"));
                }
                let claims = of.claims.iter().map(|(path, wanted)| (path.clone(), wanted.clone())).collect();
                issuer.mappings.push(Mapping { claims, identity: holder() });
            }
            for (n, text) in entry.certificates.iter().enumerate() {
                let key = at(&format!("certificates[{n}]"));
                let name: CertificateName = text.parse().map_err(|error| value(&key, error))?;
                if parts.certificates.insert(name, holder()).is_some() {
                    return Err(value(key, format!("{text} is configured twice")));
                }
            }
            for (n, access_key) in entry.access_key.iter().enumerate() {
                let key = |name: &str| at(&format!("access_key[{n}].{name}"));
                let (variable, file) = (access_key.secret_env.as_ref(), access_key.secret_file.as_ref());
                let secret = secret([&key("secret_env"), &key("secret_file")], variable, file)?
                    .ok_or_else(|| value(key("secret_env"), "there is neither secret_env nor secret_file"))?;
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
                if access_key.id.is_empty() || !access_key.id.bytes().all(plain) {
                    return Err(value(key("id"), format!("{:?} is not of letters, digits, - . and _", access_key.id)));
                }
                if parts.access_keys.iter().any(|known| known.id == access_key.id) {
                    return Err(value(key("id"), format!("{} is configured twice", access_key.id)));
                }
                parts.access_keys.push(AccessKey { id: access_key.id.clone(), secret, holder: holder() });
            }
        }
        for (place, token) in parts.tokens.iter().enumerate() {
            let earlier = parts.tokens[..place].iter().find(|earlier| earlier.digest == token.digest);
            if let Some(earlier) = earlier {
                let (one, other) = (&earlier.holder.principal, &token.holder.principal);
                return Err(value("principal", format!("{one} and {other} have the same token")));
            }
        }
        Ok(parts.into())
    }

    /// What it lists, whatever else is wrong with it.
    pub fn listed(&self) -> ListedCredentials {
        let mut listed = ListedCredentials::default();
        listed.issuers.extend(self.issuers.iter().map(|entry| entry.issuer.clone()));
        for entry in self.principals {
            let Ok(principal) = entry.arn.parse::<Principal>() else { continue };
            let groups = self.groups.iter().filter(|group| entry.groups.contains(&group.name));
            let policies = entry.policies.iter().chain(groups.flat_map(|group| &group.policies));
            listed.principals.entry(principal.clone()).or_default().extend(policies.cloned());
            let sha256 = entry.token_sha256.iter().chain(entry.token.iter().map(|token| &token.sha256));
            for digest in sha256.filter_map(|text| digest("", text).ok()) {
                listed.tokens.insert(digest, principal.clone());
            }
            for of in &entry.jwt {
                listed.claims.push((of.issuer.clone(), of.claims.clone(), principal.clone()));
            }
            for name in entry.certificates.iter().filter_map(|text| text.parse().ok()) {
                listed.certificates.insert(name, principal.clone());
            }
            for key in &entry.access_key {
                listed.access_keys.insert(key.id.clone(), principal.clone());
            }
        }
        listed
    }

    /// The files that it is read from.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let policies = self.policies.iter().filter_map(|policy| policy.file.as_ref());
        let issuers = self.issuers.iter().flat_map(|issuer| issuer.jwks_file.iter().chain(&issuer.jwks_ca_file));
        let keys = self.principals.iter().flat_map(|principal| &principal.access_key);
        policies.chain(issuers).chain(keys.filter_map(|key| key.secret_file.as_ref()))
    }

    /// The principals with their policies, in their order.
    pub fn identities(&self) -> Result<Vec<Arc<Identity>>, Error> {
        let policies = self.documents()?;
        for (place, group) in self.groups.iter().enumerate() {
            let at = |key: &str| format!("group[{place}].{key}");
            if self.groups[..place].iter().any(|earlier| earlier.name == group.name) {
                return Err(value(at("name"), format!("{:?} is configured twice", group.name)));
            }
            attach(&policies, &group.policies, &Attachment::Principal, &at("policies"))?;
        }
        let read = |(place, entry): (usize, &PrincipalEntry)| {
            let at = |key: &str| format!("principal[{place}].{key}");
            let principal: Principal = entry.arn.parse().map_err(|error| value(at("arn"), error))?;
            if self.principals[..place].iter().any(|earlier| earlier.arn == entry.arn) {
                return Err(value(at("arn"), format!("{principal} is configured twice")));
            }
            let mut attached = attach(&policies, &entry.policies, &Attachment::Principal, &at("policies"))?;
            if !entry.groups.is_empty() && !principal.is_user() {
                return Err(value(at("groups"), format!("{principal} is not a user, and only users are in groups")));
            }
            for name in &entry.groups {
                let group = self.groups.iter().find(|group| group.name == *name);
                let group = group.ok_or_else(|| value(at("groups"), format!("{name:?} is not one of [[group]]")))?;
                attached.extend(attach(&policies, &group.policies, &Attachment::Group(name.as_str().into()), "")?);
            }
            let quota = Quota {
                calls_per_second: entry.calls_per_second.or(self.limits.calls_per_second),
                max_in_flight: entry.max_in_flight.unwrap_or(self.limits.max_in_flight),
            };
            let numbers = [("calls_per_second", quota.calls_per_second), ("max_in_flight", Some(quota.max_in_flight))];
            positive(&format!("principal[{place}]"), &numbers.map(|(key, n)| (key, n.unwrap_or(1).into())))?;
            Ok(Arc::new(Identity { principal, policies: Policies(attached), quota }))
        };
        self.principals.iter().enumerate().map(read).collect()
    }

    /// The keys that conditions can be about.
    pub fn condition_keys(&self) -> Keys {
        Keys::with_claims(self.issuers.iter().flat_map(JwtEntry::condition_keys))
    }

    fn documents(&self) -> Result<Vec<Arc<Policy>>, Error> {
        let keys = self.condition_keys();
        let mut policies: Vec<Arc<Policy>> = Vec::with_capacity(self.policies.len());
        for (place, entry) in self.policies.iter().enumerate() {
            let at = |key: &str| format!("policy[{place}].{key}");
            let (key, text) = match (&entry.document, &entry.file) {
                (Some(text), None) => ("document", text.clone()),
                (None, Some(file)) => {
                    let failed = |error| value(at("file"), format!("{}: {error}", file.display()));
                    ("file", std::fs::read_to_string(file).map_err(failed)?)
                }
                _ => return Err(value(at("document"), "exactly one of document and file is needed")),
            };
            let document = Document::parse(&text, &keys).map_err(|error| value(at(key), error))?;
            if policies.iter().any(|policy| *policy.name == *entry.name) {
                return Err(value(at("name"), format!("{:?} is configured twice", entry.name)));
            }
            policies.push(Arc::new(Policy { name: entry.name.as_str().into(), document }));
        }
        Ok(policies)
    }
}

fn attach(
    policies: &[Arc<Policy>],
    names: &[String],
    to: &Attachment,
    key: &str,
) -> Result<Vec<AttachedPolicy>, Error> {
    let named = |name: &String| {
        let policy = policies.iter().find(|policy| *policy.name == **name);
        let policy = policy.ok_or_else(|| value(key, format!("{name:?} is not one of [[policy]]")))?;
        Ok(AttachedPolicy { policy: Arc::clone(policy), to: to.clone() })
    };
    names.iter().map(named).collect()
}

fn digest(key: &str, text: &str) -> Result<[u8; 32], Error> {
    let mut digest = [0; 32];
    // The value is not repeated: somebody may have put the token itself there.
    hex::decode_to_slice(text, &mut digest).map_err(|_| value(key, "expected 64 hexadecimal digits"))?;
    Ok(digest)
}
