//! Creates and verifies signatures with access keys: ACS3-HMAC-SHA256 (Alibaba Cloud SDK, "V3 request structure and
//! signature").
//!
//! A signature covers the method, the path, the query, the headers that it names, and the digest of the content. It is
//! valid for one request, within 15 minutes.

mod canonical;
mod header;
mod hosts;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, time::Duration};

use domain::{ForeignText, Secret, Timestamp};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, header::CONTENT_TYPE};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use canonical::{SignedRequest, encode};
pub use header::AuthorizationHeader;
pub use hosts::Hosts;

/// The scheme of the `authorization` header.
pub const SCHEME: &str = "ACS3-HMAC-SHA256";
/// Maximum difference between the time of a request and now.
pub const CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);
/// Maximum length of a nonce, in bytes.
const MAX_NONCE: usize = 128;

/// Header with the SHA-256 of the content, in hexadecimal.
pub const CONTENT_SHA256: &str = "x-acs-content-sha256";
/// Header with the time of the request, in whole seconds (RFC 3339).
pub const DATE: &str = "x-acs-date";
/// Header with a value that is unique to the request.
pub const NONCE: &str = "x-acs-signature-nonce";

/// An access key of the principal `holder`.
#[derive(Debug, Clone)]
pub struct AccessKey<H> {
    /// Public id.
    pub id: String,
    /// Secret, shared with the caller.
    pub secret: Secret,
    /// The principal that the key belongs to.
    pub holder: H,
}

/// The access keys by id, and the hosts that requests may be signed for.
#[derive(Debug, Clone)]
pub struct AccessKeys<H> {
    keys: HashMap<String, AccessKey<H>>,
    hosts: Hosts,
}

/// A request with a valid signature. The nonce must be checked as well: the request may be a replay.
#[derive(Debug, Clone)]
pub struct VerifiedRequest<'k, H> {
    /// The signer.
    pub holder: &'k H,
    /// The nonce, which is valid only once.
    pub nonce: Nonce,
}

/// Why a signature is rejected, or cannot be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The access key is not configured.
    #[error("unknown access key")]
    UnknownKey,
    /// The signature does not match the request. Holds the reason.
    #[error("{0}")]
    Mismatch(String),
    /// The signed time differs too much from the server's time.
    #[error("the request was signed at {signed}, more than {minutes} minutes from the server's time", minutes = CLOCK_SKEW.as_secs() / 60)]
    Stale {
        /// The signed time.
        signed: Timestamp,
    },
}

/// A nonce of an access key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Nonce {
    pub access_key_id: String,
    /// Value of the header.
    pub value: String,
    /// The time from which a request with this nonce is rejected because of its age.
    pub until: Timestamp,
}

impl<H> Default for AccessKeys<H> {
    fn default() -> Self {
        Self::new([], Hosts::default())
    }
}

impl<H> AccessKeys<H> {
    /// Creates a set of keys for requests to the given hosts.
    pub fn new(keys: impl IntoIterator<Item = AccessKey<H>>, hosts: Hosts) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id.clone(), key)).collect(), hosts }
    }

    /// Returns the key with that id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&AccessKey<H>> {
        self.keys.get(id)
    }

    /// Returns the keys in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &AccessKey<H>> {
        self.keys.values()
    }

    /// Returns the hosts that requests may be signed for.
    #[must_use]
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Whether no access keys are configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Verifies a request's signature, host and time, and that `content` is the signed content.
    ///
    /// # Errors
    ///
    /// Fails if any of these does not match, or the key is unknown.
    pub fn verify(
        &self,
        request: &SignedRequest<'_>,
        content: &[u8],
        now: Timestamp,
    ) -> Result<VerifiedRequest<'_, H>, SignatureError> {
        let invalid = |problem: &str| SignatureError::Mismatch(problem.to_owned());
        let authorization = AuthorizationHeader::parse(request.headers)
            .ok_or_else(|| invalid("The authorization header is malformed"))?;
        let key = self.keys.get(authorization.credential).ok_or(SignatureError::UnknownKey)?;
        let expected = signature(request, &authorization.signed_headers, &key.secret)?;
        if !bool::from(expected.as_bytes().ct_eq(authorization.signature.as_bytes())) {
            return Err(invalid("The signature does not match the request"));
        }
        // The code below reads only signed headers.
        let header = |name: &str| single_value(request.headers, name);
        let host = request.authority.or_else(|| header("host")).unwrap_or_default();
        if !self.hosts.include(host) {
            let host = ForeignText::value(host);
            return Err(SignatureError::Mismatch(format!(
                "The request is signed for the host {host:?}, which is not one of server.hosts"
            )));
        }
        if request.is_form(content) && !authorization.signed_headers.contains(&CONTENT_TYPE.as_str()) {
            return Err(invalid("content-type must be signed, because it determines how the content is parsed"));
        }
        let digest = hex::encode(Sha256::digest(content));
        if !header(CONTENT_SHA256).is_some_and(|signed| bool::from(signed.as_bytes().ct_eq(digest.as_bytes()))) {
            return Err(invalid("x-acs-content-sha256 is not the SHA-256 of the content"));
        }
        let signed = header(DATE)
            .and_then(Timestamp::parse)
            .ok_or_else(|| invalid("x-acs-date is missing or not a time such as 2026-11-25T17:00:00Z"))?;
        if signed.until(now) > CLOCK_SKEW || now.until(signed) > CLOCK_SKEW {
            return Err(SignatureError::Stale { signed });
        }
        let value = header(NONCE).filter(|nonce| (1..=MAX_NONCE).contains(&nonce.len()));
        let value = value.ok_or_else(|| invalid("x-acs-signature-nonce is missing or too long"))?;
        let nonce = Nonce {
            access_key_id: key.id.clone(),
            value: value.to_owned(),
            until: signed.after(CLOCK_SKEW).after(Duration::from_secs(1)),
        };
        Ok(VerifiedRequest { holder: &key.holder, nonce })
    }
}

/// Computes the signature of a request and of the given headers, which must be sorted.
///
/// # Errors
///
/// Fails if a header that must be signed is not given, or a given one does not occur exactly once.
pub fn signature(
    request: &SignedRequest<'_>,
    signed_headers: &[&str],
    secret: &Secret,
) -> Result<String, SignatureError> {
    let canonical = request.canonical(signed_headers)?;
    let to_sign = format!("{SCHEME}\n{}", hex::encode(Sha256::digest(canonical)));
    // Never fails: HMAC accepts keys of any length (RFC 2104, section 3).
    Ok(Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()).map_or_else(
        |_| String::new(),
        |mut mac| {
            mac.update(to_sign.as_bytes());
            hex::encode(mac.finalize().into_bytes())
        },
    ))
}

/// Returns the value of the `authorization` header for a request whose other headers are complete. Signs the headers
/// that begin with `x-acs-`, the host, and the content type.
///
/// # Errors
///
/// Fails as [`signature`] does.
pub fn authorize(request: &SignedRequest<'_>, access_key_id: &str, secret: &Secret) -> Result<String, SignatureError> {
    let names = request.signed_header_names();
    let signature = signature(request, &names.iter().map(String::as_str).collect::<Vec<_>>(), secret)?;
    Ok(format!("{SCHEME} Credential={access_key_id},SignedHeaders={},Signature={signature}", names.join(";")))
}

/// Returns the value of a header that occurs exactly once.
fn single_value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() { None } else { Some(value.trim()) }
}
