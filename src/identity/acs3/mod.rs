//! Signatures with access keys: ACS3-HMAC-SHA256 (Alibaba Cloud SDK, "V3 request structure and signature"), made and verified.
//!
//! A signature covers the method, the path, the query, the headers that it names, and the content by its digest. It is good for one
//! request within a quarter of an hour.

mod canonical;
mod header;
mod hosts;

use std::{collections::HashMap, sync::Arc, time::Duration};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, header::CONTENT_TYPE};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use canonical::{Signed, encode};
pub use header::Authorization;
pub use hosts::Hosts;

use super::{Caller, Identity, Method, Unproven};
use crate::domain::{ForeignText, Secret, Timestamp};

/// The scheme of the `authorization` header.
pub const SCHEME: &str = "ACS3-HMAC-SHA256";
/// By how much the time of a request may differ from now.
pub const CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);
/// The longest nonce, in characters.
const MAX_NONCE: usize = 128;

/// The header with the digest of the content, in hexadecimal.
pub const CONTENT: &str = "x-acs-content-sha256";
/// The header with the time of the request, in whole seconds.
pub const DATE: &str = "x-acs-date";
/// The header with what makes the request different from all others.
pub const NONCE: &str = "x-acs-signature-nonce";

/// An access key of a principal.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// Its public part.
    pub id: String,
    /// Its secret part, which both sides know.
    pub secret: Secret,
    /// Whose it is.
    pub holder: Arc<Identity>,
}

/// All access keys, by their ids, and the hosts that requests may be signed for.
#[derive(Debug, Clone, Default)]
pub struct AccessKeys {
    pub(super) keys: HashMap<String, AccessKey>,
    pub(super) hosts: Hosts,
}

/// A request that bears a signature which is its own. It may still have been made before.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Who made it.
    pub caller: Caller,
    /// The id of the key, and the nonce: together they are used once.
    pub nonce: Nonce,
}

/// What makes a request of an access key different from its others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Nonce {
    /// The key's id.
    pub access_key_id: String,
    /// The nonce.
    pub value: String,
    /// When a request with it is too old anyway.
    pub until: Timestamp,
}

impl AccessKeys {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Verifies a request's signature, its time, and that `content` is what was signed.
    pub fn verify(&self, request: &Signed<'_>, content: &[u8], now: Timestamp) -> Result<Verified, Unproven> {
        let wrong = |why: &str| Unproven::Signature(why.to_owned());
        let authorization =
            Authorization::of(request.headers).ok_or_else(|| wrong("The authorization header can't be read"))?;
        let key = self.keys.get(authorization.credential).ok_or(Unproven::Unknown)?;
        let expected = signature(request, &authorization.signed_headers, &key.secret)?;
        if !bool::from(expected.as_bytes().ct_eq(authorization.signature.as_bytes())) {
            return Err(wrong("The signature is not the one of this request"));
        }
        // What follows has been signed.
        let header = |name: &str| one(request.headers, name);
        let host = request.authority.or_else(|| header("host")).unwrap_or_default();
        if !self.hosts.include(host) {
            let host = ForeignText::value(host);
            return Err(Unproven::Signature(format!(
                "The request is signed for {host:?}, which is none of server.hosts"
            )));
        }
        if request.is_form(content) && !authorization.signed_headers.contains(&CONTENT_TYPE.as_str()) {
            return Err(wrong("content-type must be among the signed headers: it says how the content is read"));
        }
        let digest = hex::encode(Sha256::digest(content));
        if !header(CONTENT).is_some_and(|signed| bool::from(signed.as_bytes().ct_eq(digest.as_bytes()))) {
            return Err(wrong("x-acs-content-sha256 is not the digest of the content"));
        }
        let signed = header(DATE).and_then(Timestamp::parse).ok_or_else(|| wrong("x-acs-date is no time"))?;
        if signed.until(now) > CLOCK_SKEW || now.until(signed) > CLOCK_SKEW {
            return Err(Unproven::Stale { signed });
        }
        let value = header(NONCE).filter(|nonce| (1..=MAX_NONCE).contains(&nonce.len()));
        let value = value.ok_or_else(|| wrong("x-acs-signature-nonce is missing or too long"))?;
        let nonce = Nonce {
            access_key_id: key.id.clone(),
            value: value.to_owned(),
            until: signed.after(CLOCK_SKEW).after(Duration::from_secs(1)),
        };
        Ok(Verified { caller: Caller::of(&key.holder, Method::AccessKey), nonce })
    }
}

/// The signature of a request and of these of its headers, which are in order. It fails if one that has to be signed is not among
/// them, or one of them is not there exactly once.
pub fn signature(request: &Signed<'_>, signed_headers: &[&str], secret: &Secret) -> Result<String, Unproven> {
    let canonical = request.canonical(signed_headers)?;
    let to_sign = format!("{SCHEME}\n{}", hex::encode(Sha256::digest(canonical)));
    // An HMAC takes a key of any length (RFC 2104, section 3), so this never fails.
    Ok(Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()).map_or_else(
        |_| String::new(),
        |mut mac| {
            mac.update(to_sign.as_bytes());
            hex::encode(mac.finalize().into_bytes())
        },
    ))
}

/// The value of the `authorization` header for a request whose other headers are complete. All that begin with `x-acs-`, the host,
/// and the content's type are signed.
pub fn authorize(request: &Signed<'_>, access_key_id: &str, secret: &Secret) -> Result<String, Unproven> {
    let names = request.names();
    let signature = signature(request, &names.iter().map(String::as_str).collect::<Vec<_>>(), secret)?;
    Ok(format!("{SCHEME} Credential={access_key_id},SignedHeaders={},Signature={signature}", names.join(";")))
}

/// The value of a header that stands there once.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() { None } else { Some(value.trim()) }
}

#[cfg(test)]
mod tests;
