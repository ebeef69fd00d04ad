//! `[[principal]]` and `[[policy]]`.

use serde::Deserialize;

use super::{Error, value};
use crate::ram::{Document, Policy, Principal};

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

/// A principal, the SHA-256 of its token, and its policies.
pub type Grant = (Principal, [u8; 32], Vec<Policy>);

/// The principals, each with the digest of its token and its policies.
pub(super) fn grants(principals: &[PrincipalEntry], entries: &[PolicyEntry]) -> Result<Vec<Grant>, Error> {
    let mut policies: Vec<Policy> = Vec::with_capacity(entries.len());
    for (place, entry) in entries.iter().enumerate() {
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
    principals.iter().enumerate().map(read).collect()
}
