//! `[[principal]]`, `[[group]]` and `[[policy]]`: the callers and their policies.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use serde::Deserialize;

use super::{Error, Limits, invalid, jwt::JwtEntry, positive, secret};
use crate::{
    acs3::{AccessKey, Hosts},
    domain::Timestamp,
    identity::{
        Authenticator, CertificateName, Credentials, Identity, JwksFetcher, ListedCredentials, Mapping, Quota, Token,
    },
    ram::{AttachedPolicy, Attachment, Document, Keys, Policies, Policy, Principal},
};

/// `[[principal]]`: a caller with its credentials and policies.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrincipalEntry {
    /// The RAM principal, for example `acs:ram::1234:role/ci`.
    pub arn: String,
    /// The SHA-256 of a bearer token, as 64 hexadecimal digits.
    pub token_sha256: Option<String>,
    /// More bearer tokens.
    pub token: Vec<TokenEntry>,
    /// The claims that identify the principal in JSON Web Tokens.
    pub jwt: Vec<ClaimsEntry>,
    /// The names that identify the principal in client certificates: SPIFFE IDs and DNS names.
    pub certificates: Vec<String>,
    /// The access keys that sign requests.
    pub access_key: Vec<AccessKeyEntry>,
    /// The names of its groups; for users only.
    pub groups: Vec<String>,
    /// The names of its policies.
    pub policies: Vec<String>,
    /// The limit of calls a second, in place of that of `[limits]`.
    pub calls_per_second: Option<u32>,
    /// The limit of concurrent calls and streams, in place of that of `[limits]`.
    pub max_in_flight: Option<u32>,
}

/// `[[principal.token]]`: a bearer token.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// The SHA-256 of the token, as 64 hexadecimal digits.
    pub sha256: String,
    /// When the token expires (RFC 3339); never if absent.
    pub expires: Option<String>,
}

/// `[[principal.jwt]]`: the claims of a JSON Web Token that identify the principal.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimsEntry {
    /// The issuer, one of `[[jwt]]`.
    pub issuer: String,
    /// The paths of the claims and their values. A token must have all of them.
    pub claims: HashMap<String, String>,
}

/// `[[principal.access_key]]`: a key that signs requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKeyEntry {
    /// The id of the key.
    pub id: String,
    /// The environment variable with the secret.
    pub secret_env: Option<String>,
    /// The file with the secret.
    pub secret_file: Option<PathBuf>,
}

/// `[[group]]`: users that share policies.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    /// The name of the group.
    pub name: String,
    /// The names of its policies.
    #[serde(default)]
    pub policies: Vec<String>,
}

/// `[[policy]]`: a RAM policy document.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyEntry {
    /// The name of the policy.
    pub name: String,
    /// The document, as JSON.
    pub document: Option<String>,
    /// The file with the document.
    pub file: Option<PathBuf>,
}

/// The sections of the configuration that define access.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access<'c> {
    pub principals: &'c [PrincipalEntry],
    pub groups: &'c [GroupEntry],
    pub policies: &'c [PolicyEntry],
    pub issuers: &'c [JwtEntry],
    pub limits: &'c Limits,
}

impl Access<'_> {
    /// Returns the callers with all their credentials. Requests may be signed for `hosts`. `fetched` keeps the key sets
    /// that are fetched.
    pub fn directory(&self, hosts: Hosts, fetched: &mut JwksFetcher) -> Result<Authenticator, Error> {
        let identities = self.identities()?;
        let mut parts = Credentials { hosts, ..Credentials::default() };
        for (index, entry) in self.issuers.iter().enumerate() {
            if self.issuers[..index].iter().any(|earlier| earlier.issuer == entry.issuer) {
                return Err(invalid(
                    format!("jwt[{index}].issuer"),
                    format!("{:?} is configured twice; issuers must be unique", entry.issuer),
                ));
            }
            parts.issuers.push(entry.issuer(index, fetched)?);
        }
        for (index, (entry, identity)) in self.principals.iter().zip(&identities).enumerate() {
            let at = |key: &str| format!("principal[{index}].{key}");
            let holder = || Arc::clone(identity);
            if let Some(sha256) = &entry.token_sha256 {
                let digest = parse_digest(&at("token_sha256"), sha256)?;
                parts.tokens.push(Token { digest, expires: None, holder: holder() });
            }
            for (n, token) in entry.token.iter().enumerate() {
                let digest = parse_digest(&at(&format!("token[{n}].sha256")), &token.sha256)?;
                let expires = token.expires.as_deref().map(|text| {
                    let problem = || format!("{text:?} is not a time like 2027-01-31T00:00:00Z");
                    Timestamp::parse(text).ok_or_else(|| invalid(at(&format!("token[{n}].expires")), problem()))
                });
                parts.tokens.push(Token { digest, expires: expires.transpose()?, holder: holder() });
            }
            for (n, claims) in entry.jwt.iter().enumerate() {
                let issuer = parts.issuers.iter_mut().find(|issuer| issuer.name == claims.issuer).ok_or_else(|| {
                    invalid(at(&format!("jwt[{n}].issuer")), format!("{:?} is not one of [[jwt]]", claims.issuer))
                })?;
                if claims.claims.is_empty() {
                    return Err(invalid(
                        at(&format!("jwt[{n}].claims")),
                        "empty claims would match every token; set at least one",
                    ));
                }
                let claims = claims.claims.iter().map(|(path, value)| (path.clone(), value.clone())).collect();
                issuer.mappings.push(Mapping { claims, identity: holder() });
            }
            for (n, text) in entry.certificates.iter().enumerate() {
                let key = at(&format!("certificates[{n}]"));
                let name: CertificateName = text.parse().map_err(|error| invalid(&key, error))?;
                if parts.certificates.insert(name, holder()).is_some() {
                    return Err(invalid(key, format!("{text} is configured twice; names must be unique")));
                }
            }
            for (n, access_key) in entry.access_key.iter().enumerate() {
                let key = |name: &str| at(&format!("access_key[{n}].{name}"));
                let (variable, file) = (access_key.secret_env.as_ref(), access_key.secret_file.as_ref());
                let secret = secret([&key("secret_env"), &key("secret_file")], variable, file)?
                    .ok_or_else(|| invalid(key("secret_env"), "needs a secret; set secret_env or secret_file"))?;
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
                if access_key.id.is_empty() || !access_key.id.bytes().all(plain) {
                    return Err(invalid(
                        key("id"),
                        format!("{:?} has characters other than letters, digits, - . and _", access_key.id),
                    ));
                }
                if parts.access_keys.iter().any(|other| other.id == access_key.id) {
                    return Err(invalid(
                        key("id"),
                        format!("{} is configured twice; ids must be unique", access_key.id),
                    ));
                }
                parts.access_keys.push(AccessKey { id: access_key.id.clone(), secret, holder: holder() });
            }
        }
        for (index, token) in parts.tokens.iter().enumerate() {
            let earlier = parts.tokens[..index].iter().find(|earlier| earlier.digest == token.digest);
            if let Some(earlier) = earlier {
                let (one, other) = (&earlier.holder.principal, &token.holder.principal);
                return Err(invalid("principal", format!("{one} and {other} have the same token; each needs its own")));
            }
        }
        Ok(parts.into())
    }

    /// Returns the listed principals, credentials and policies, even if other values are invalid.
    pub fn listed(&self) -> ListedCredentials {
        let mut listed = ListedCredentials::default();
        listed.issuers.extend(self.issuers.iter().map(|entry| entry.issuer.clone()));
        for entry in self.principals {
            let Ok(principal) = entry.arn.parse::<Principal>() else { continue };
            let groups = self.groups.iter().filter(|group| entry.groups.contains(&group.name));
            let policies = entry.policies.iter().chain(groups.flat_map(|group| &group.policies));
            listed.principals.entry(principal.clone()).or_default().extend(policies.cloned());
            let sha256 = entry.token_sha256.iter().chain(entry.token.iter().map(|token| &token.sha256));
            for digest in sha256.filter_map(|text| parse_digest("", text).ok()) {
                listed.tokens.insert(digest, principal.clone());
            }
            for jwt in &entry.jwt {
                listed.claims.push((jwt.issuer.clone(), jwt.claims.clone(), principal.clone()));
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

    /// Returns the files that the sections name.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let policies = self.policies.iter().filter_map(|policy| policy.file.as_ref());
        let issuers = self.issuers.iter().flat_map(|issuer| issuer.jwks_file.iter().chain(&issuer.jwks_ca_file));
        let keys = self.principals.iter().flat_map(|principal| &principal.access_key);
        policies.chain(issuers).chain(keys.filter_map(|key| key.secret_file.as_ref()))
    }

    /// Returns the principals with their policies, in the order of the configuration.
    pub fn identities(&self) -> Result<Vec<Arc<Identity>>, Error> {
        let policies = self.documents()?;
        for (index, group) in self.groups.iter().enumerate() {
            let at = |key: &str| format!("group[{index}].{key}");
            if self.groups[..index].iter().any(|earlier| earlier.name == group.name) {
                return Err(invalid(at("name"), format!("{:?} is configured twice; names must be unique", group.name)));
            }
            attach(&policies, &group.policies, &Attachment::Principal, &at("policies"))?;
        }
        let identity = |(index, entry): (usize, &PrincipalEntry)| {
            let at = |key: &str| format!("principal[{index}].{key}");
            let principal: Principal = entry.arn.parse().map_err(|error| invalid(at("arn"), error))?;
            if self.principals[..index].iter().any(|earlier| earlier.arn == entry.arn) {
                return Err(invalid(at("arn"), format!("{principal} is configured twice; principals must be unique")));
            }
            let mut attached = attach(&policies, &entry.policies, &Attachment::Principal, &at("policies"))?;
            if !entry.groups.is_empty() && !principal.is_user() {
                return Err(invalid(at("groups"), format!("{principal} is not a user; only users can be in groups")));
            }
            for name in &entry.groups {
                let group = self.groups.iter().find(|group| group.name == *name);
                let group = group.ok_or_else(|| invalid(at("groups"), format!("{name:?} is not one of [[group]]")))?;
                attached.extend(attach(&policies, &group.policies, &Attachment::Group(name.as_str().into()), "")?);
            }
            let quota = Quota {
                calls_per_second: entry.calls_per_second.or(self.limits.calls_per_second),
                max_in_flight: entry.max_in_flight.unwrap_or(self.limits.max_in_flight),
            };
            let numbers = [("calls_per_second", quota.calls_per_second), ("max_in_flight", Some(quota.max_in_flight))];
            positive(&format!("principal[{index}]"), &numbers.map(|(key, n)| (key, n.unwrap_or(1).into())))?;
            Ok(Arc::new(Identity { principal, policies: Policies(attached), quota }))
        };
        self.principals.iter().enumerate().map(identity).collect()
    }

    /// Returns the condition keys that policies may use.
    pub fn condition_keys(&self) -> Keys {
        Keys::with_claims(self.issuers.iter().flat_map(JwtEntry::condition_keys))
    }

    fn documents(&self) -> Result<Vec<Arc<Policy>>, Error> {
        let keys = self.condition_keys();
        let mut policies: Vec<Arc<Policy>> = Vec::with_capacity(self.policies.len());
        for (index, entry) in self.policies.iter().enumerate() {
            let at = |key: &str| format!("policy[{index}].{key}");
            let (key, text) = match (&entry.document, &entry.file) {
                (Some(text), None) => ("document", text.clone()),
                (None, Some(file)) => {
                    let failed = |error| invalid(at("file"), format!("failed to read {}: {error}", file.display()));
                    ("file", std::fs::read_to_string(file).map_err(failed)?)
                }
                _ => return Err(invalid(at("document"), "set either document or file")),
            };
            let document = Document::parse(&text, &keys).map_err(|error| invalid(at(key), error))?;
            if policies.iter().any(|policy| *policy.name == *entry.name) {
                return Err(invalid(at("name"), format!("{:?} is configured twice; names must be unique", entry.name)));
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
        let policy = policy.ok_or_else(|| invalid(key, format!("{name:?} is not one of [[policy]]")))?;
        Ok(AttachedPolicy { policy: Arc::clone(policy), to: to.clone() })
    };
    names.iter().map(named).collect()
}

/// Parses the SHA-256 of a token.
fn parse_digest(key: &str, text: &str) -> Result<[u8; 32], Error> {
    let mut digest = [0; 32];
    // The error omits the value, because it may be the token itself.
    hex::decode_to_slice(text, &mut digest).map_err(|_| invalid(key, "expected 64 hexadecimal digits"))?;
    Ok(digest)
}
