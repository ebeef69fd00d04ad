//! Verifies the signatures of requests to the provider.

use std::time::Duration;

use appferry::{
    acs3::{AuthorizationHeader, SignedRequest, signature},
    domain::{Secret, Timestamp},
};
use http::{HeaderMap, request::Parts};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Refused, provider::Provider};

/// Decodes the parameters in the query and in the form of a request.
pub fn parameters(query: &str, content: &[u8]) -> Vec<(String, String)> {
    let pairs = |text| url::form_urlencoded::parse(text).into_owned();
    pairs(query.as_bytes()).chain(pairs(content)).collect()
}

pub fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Returns the signature of a request and all parts of the request that it may cover.
pub fn signed_fields(parts: &Parts) -> Value {
    let all = parts.headers.keys().map(|name| (name.to_string(), header(&parts.headers, name.as_str()).into()));
    json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query().unwrap_or_default(),
        "headers": all.collect::<serde_json::Map<_, _>>(),
    })
}

impl Provider {
    /// Verifies that the request has a valid signature by a known key, a recent date, and a new nonce.
    pub fn verify(&mut self, parts: &Parts, content: &[u8]) -> Result<(), Refused> {
        let refuse = |status, code: &str| Err(Refused::new(status, code, "The request is not signed as it should be."));
        let Some(shown) = AuthorizationHeader::parse(&parts.headers) else { return refuse(400, "MissingSignature") };
        let Some(key) = self.keys.iter().find(|key| key.id == shown.credential) else {
            return refuse(404, "InvalidAccessKeyId.NotFound");
        };
        let request = SignedRequest {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or_default(),
            headers: &parts.headers,
            authority: None,
        };
        let expected = signature(&request, &shown.signed_headers, &Secret(key.secret.clone()))
            .map_err(|error| Refused::new(400, "SignatureDoesNotMatch", &format!("{error:?}")))?;
        if expected != shown.signature {
            return refuse(400, "SignatureDoesNotMatch");
        }
        if header(&parts.headers, "x-acs-content-sha256") != hex::encode(Sha256::digest(content)) {
            return refuse(400, "SignatureDoesNotMatch");
        }
        match &key.token {
            Some((_, until)) if self.started.elapsed() >= *until => return refuse(400, "InvalidSecurityToken.Expired"),
            Some((token, _)) if header(&parts.headers, "x-acs-security-token") != *token => {
                return refuse(400, "InvalidSecurityToken.Malformed");
            }
            _ => {}
        }
        let date = header(&parts.headers, "x-acs-date");
        let now = appferry::system_clock().now();
        let quarter = Duration::from_secs(15 * 60);
        let near = |date: Timestamp| date.until(now) < quarter && now.until(date) < quarter;
        if date.contains('.') || !Timestamp::parse(&date).is_some_and(near) {
            return refuse(400, "InvalidTimeStamp.Expired");
        }
        if !self.nonces.insert(header(&parts.headers, "x-acs-signature-nonce")) {
            return refuse(400, "SignatureNonceUsed");
        }
        Ok(())
    }
}
