//! JSON Web Tokens (RFC 7519, with the advice of RFC 8725): whoever an issuer that is trusted says the caller is.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Caller, Identity, Method, Unproven, jwks::Keys};
use crate::{domain::Timestamp, ram::Claim};

/// The longest token, in bytes.
const MAX_BYTES: usize = 8 << 10;

/// Somebody who signs tokens and is believed.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// Its name, which its tokens bear as `iss`.
    pub name: String,
    /// Whom a token must be made for: one of these is in its `aud`.
    pub audiences: Vec<String>,
    /// How it signs.
    pub algorithms: Vec<Algorithm>,
    /// By how much clocks may differ.
    pub leeway: Duration,
    /// Its public keys.
    pub keys: Keys,
    /// Who its tokens are for, the first that fits.
    pub mappings: Vec<Mapping>,
    /// What else is taken from a token: the name of a condition's key, and the path of the claim.
    pub claims: Vec<(Arc<str>, String)>,
}

/// Claims, and the principal that a token with all of them is for.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Paths of claims, and their values.
    pub claims: Vec<(String, String)>,
    /// Who that is.
    pub identity: Arc<Identity>,
}

/// Whether a bearer token has the form of a JSON Web Token (RFC 7515, section 7.1).
pub fn is_one(token: &str) -> bool {
    let url_safe = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    token.starts_with("eyJ") && token.split('.').count() == 3 && token.split('.').all(url_safe)
}

/// Whom a token is for, by the issuer that it names.
pub fn verify(issuers: &[Issuer], token: &str, now: Timestamp) -> Result<Caller, Unproven> {
    #[derive(Deserialize)]
    struct Named {
        iss: String,
    }
    let unreadable = || invalid("The JSON Web Token can't be read");
    if token.len() > MAX_BYTES {
        return Err(invalid(format!("The JSON Web Token is longer than {MAX_BYTES} bytes")));
    }
    // Only to find whose keys it has to be verified with.
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).ok_or_else(unreadable)?;
    let named: Named = serde_json::from_slice(&payload).map_err(|_| unreadable())?;
    let issuer = issuers.iter().find(|issuer| issuer.name == named.iss).ok_or(Unproven::Unknown)?;
    issuer.verify(token, now)
}

fn invalid(why: impl Into<String>) -> Unproven {
    Unproven::Invalid(why.into())
}

impl Issuer {
    fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, Unproven> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| invalid("The header of the JSON Web Token can't be read"))?;
        let algorithm = header.alg;
        if !self.algorithms.contains(&algorithm) {
            return Err(invalid(format!("The JSON Web Token is signed with {algorithm:?}, which is not accepted")));
        }
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&self.name]);
        validation.set_audience(&self.audiences);
        // By the clock that everything here goes by.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let keys = self.keys.current(header.kid.as_deref());
        let mut refused = None;
        for key in keys.candidates(header.kid.as_deref(), algorithm) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation) {
                Ok(data) => return self.caller(&data.claims, now),
                Err(error) => refused = Some(error),
            }
        }
        Err(match refused.as_ref().map(jsonwebtoken::errors::Error::kind) {
            None => invalid("The JSON Web Token is signed with a key that its issuer does not have"),
            Some(ErrorKind::InvalidAudience) => invalid("The JSON Web Token is made for another audience"),
            Some(ErrorKind::MissingRequiredClaim(claim)) => invalid(format!("The JSON Web Token has no {claim}")),
            Some(_) => invalid("The signature of the JSON Web Token is not valid"),
        })
    }

    fn caller(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Caller, Unproven> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => {
                seconds(value).map(Some).ok_or_else(|| invalid(format!("The JSON Web Token's {name} is no time")))
            }
        };
        let expires = time("exp")?.ok_or_else(|| invalid("The JSON Web Token has no exp"))?;
        if expires.after(self.leeway) <= now {
            return Err(invalid(format!("The JSON Web Token has expired at {expires}")));
        }
        if let Some(from) = time("nbf")?.filter(|from| now.after(self.leeway) < *from) {
            return Err(invalid(format!("The JSON Web Token is not valid before {from}")));
        }
        let has = |(path, wanted): &(String, String)| find(claims, path).is_some_and(|value| says(value, wanted));
        let mapping = self.mappings.iter().find(|mapping| mapping.claims.iter().all(has));
        let mapping = mapping.ok_or_else(|| invalid("The JSON Web Token is of nobody who may call"))?;
        let taken = self.claims.iter().filter_map(|(name, path)| {
            let value = text(find(claims, path)?)?;
            Some(Claim { name: Arc::clone(name), value })
        });
        Ok(Caller { identity: Arc::clone(&mapping.identity), method: Method::Jwt, claims: taken.collect() })
    }
}

/// A `NumericDate` (RFC 7519, section 2).
fn seconds(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64().filter(|seconds| (0.0..1e12).contains(seconds))?;
    #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
    Some(Timestamp::from_millis((seconds * 1e3) as i64))
}

/// A claim by its path, whose names are parted by `/`, as in `kubernetes.io/namespace`: a name that stands there whole goes first.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let mut ends = path.char_indices().filter(|(_, c)| *c == '/').map(|(end, _)| end);
    ends.find_map(|end| match claims.get(&path[..end]) {
        Some(Value::Object(inner)) => find(inner, &path[end + 1..]),
        _ => None,
    })
}

/// Whether a claim is a value, or a list with it.
fn says(claim: &Value, wanted: &str) -> bool {
    match claim {
        Value::Array(entries) => entries.iter().any(|entry| entry.as_str() == Some(wanted)),
        one => text(one).is_some_and(|one| one == wanted),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}
